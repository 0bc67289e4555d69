-- Gives a claim up, and goes on with `wake.lua`. KEYS: the record.
-- ARGV: what `wake.lua` needs, the claim's id and token.
local old = redis.call('GETRANGE', KEYS[1], 0, 50)
if old == '' then
    return 1
end
if string.sub(old, 4, 51) ~= ARGV[2] or string.sub(old, 2, 2) ~= 'R' then
    return 0
end
redis.call('DEL', KEYS[1])
