-- What a record means right now, and what goes with that: of a claim, what is left of its lease in
-- milliseconds; of a settled record, the response that is kept apart, or 'apart' if its key was not
-- named.
-- A claim is written and renewed with its retention as the time to live, so that what is missing
-- from it is the claim's age by the clock of this server.
local function see(record, id)
    if not is_own(record, id) then
        return 'foreign', false
    end
    if state(record) ~= 'R' then
        if string.byte(record, 3) < 2 then
            return 'settled', false
        end
        if not KEYS[2] then
            return 'apart', false
        end
        return 'settled', redis.call('GET', KEYS[2])
    end
    local left = redis.call('PTTL', KEYS[1])
    -- Without an expiry (somebody sent PERSIST) its age is unknown, and nobody may call it lapsed.
    -- More to live than it was given says that the server's clock went back, as in a failover.
    local age = left < 0 and 0 or math.max(0, retention(record) - left)
    return 'held', math.max(0, struct.unpack('>I4', record, 116) - age)
end
