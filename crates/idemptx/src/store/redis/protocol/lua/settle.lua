-- Makes a result final, and goes on with `wake.lua`. KEYS: the record and, if it is kept apart, its response.
-- ARGV: what `wake.lua` needs, the settled record, its retention, and if the response is kept apart:
-- the response, its retention.
-- A function of Lua is made anew by each call, so this script, which every new request waits for,
-- has none, and reads no more than it compares: the head up to the end of the claim.
local call, sub = redis.call, string.sub
local new = ARGV[2]
local old = call('GETRANGE', KEYS[1], 0, 50)
if sub(old, 4, 51) ~= sub(new, 4, 51) then
    return 0
end
local state = sub(old, 2, 2)
if state ~= 'R' then
    return state == sub(new, 2, 2) and 1 or 0
end
-- The record goes last: it is what makes the response count.
if ARGV[4] then
    call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
call('SET', KEYS[1], new, 'PX', ARGV[3])
