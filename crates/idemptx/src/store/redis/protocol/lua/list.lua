-- What an operator sees of a record: its head with what may be its description, what is left of its time to live, its length, and
-- the length of the response that is kept apart, or -1. KEYS: the record, its response.
local left = redis.call('PTTL', KEYS[1])
if left == -2 then
    return false
end
local response = redis.call('EXISTS', KEYS[2]) == 1 and redis.call('STRLEN', KEYS[2]) or -1
return { redis.call('GETRANGE', KEYS[1], 0, 782), left, redis.call('STRLEN', KEYS[1]), response }
