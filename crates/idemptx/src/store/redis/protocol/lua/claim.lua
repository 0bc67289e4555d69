-- Claims a record where the plain SET could not decide.
-- KEYS: the record and, if it is kept apart, its response.
-- ARGV: the record of the claim, its retention, the state and the token that may be replaced.
local new = ARGV[1]
local old = redis.call('GET', KEYS[1])
local flags, fence, attempt = 0, 0, 0
if old then
    local meaning, detail = see(old, string.sub(new, 4, 35))
    if meaning == 'held' and claim_of(old) == claim_of(new) then
        redis.call('PEXPIRE', KEYS[1], retention(old))
        return { 'granted', old, false }
    end
    if meaning == 'held' and redis.call('PTTL', KEYS[1]) > retention(old) then
        -- The server's clock went back: the lease ends a term from now, not that much later.
        redis.call('PEXPIRE', KEYS[1], retention(old))
    end
    local is_live = meaning == 'held' and detail > 0
    if is_live or meaning ~= ARGV[3] or string.sub(old, 36, 51) ~= ARGV[4] then
        return { meaning, old, detail }
    end
    -- Whoever waits for an orphan waits for its successor.
    flags = meaning == 'held' and is_awaited(old) and 1 or 0
    fence, attempt = struct.unpack('>I8I4', old, 52)
end
local now = redis.call('TIME')
fence = math.max(fence + 1, now[1] * 1000000 + now[2], (struct.unpack('>I8', new, 52)))
new = string.sub(new, 1, 2) .. string.char(flags) .. string.sub(new, 4, 51)
    .. struct.pack('>I8I4', fence, attempt + 1) .. string.sub(new, 64)
redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
return { 'granted', new, false }
