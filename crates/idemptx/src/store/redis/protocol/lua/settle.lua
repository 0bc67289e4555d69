-- Makes a result final. KEYS: the record and, if it is kept apart, its response.
-- ARGV: the settled record, its retention, the command and the channel of wake-ups, and if the
-- response is kept apart: the response, its retention.
local new = ARGV[1]
local old = redis.call('GETRANGE', KEYS[1], 0, 142)
if claim_of(old) ~= claim_of(new) then
    return 0
end
if state(old) ~= 'R' then
    return state(old) == state(new) and 1 or 0
end
-- The record goes last: it is what makes the response count.
if ARGV[5] then
    redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
end
redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
wake(old, ARGV[3], ARGV[4])
return 1
