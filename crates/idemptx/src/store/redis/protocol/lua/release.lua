-- Gives a claim up. KEYS: the record.
-- ARGV: the claim's id and token, the command and the channel of wake-ups.
local old = redis.call('GETRANGE', KEYS[1], 0, 142)
if old == '' then
    return 1
end
if claim_of(old) ~= ARGV[1] or state(old) ~= 'R' then
    return 0
end
redis.call('DEL', KEYS[1])
wake(old, ARGV[2], ARGV[3])
return 1
