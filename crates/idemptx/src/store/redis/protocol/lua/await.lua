-- Marks a claim as awaited, so that its end is published. KEYS: the record. ARGV: its id.
local old = redis.call('GETRANGE', KEYS[1], 0, 142)
if not is_own(old, ARGV[1]) or state(old) ~= 'R' then
    return 0
end
if not is_awaited(old) then
    redis.call('SETRANGE', KEYS[1], 2, string.char(string.byte(old, 3) + 1))
end
return 1
