-- Compares the history of this server's data with the one that was written down beside the data.
-- A server that begins a history of its own (promoted, or started again) may lack what came last.
-- KEYS: the epoch. ARGV: the history that the caller saw last, the grace period in ms, the time in ms
-- since a server of that history answered the caller, the number of this server's promotion.
local now = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)
local written = redis.call('GET', KEYS[1]) or ''
local known, promotion, ends = string.match(written, '^(%w+) (%d+) (%d+)$')
-- One that was a primary before, was replaced without hearing of it, and is back, has the history it
-- had, and lacks what others acknowledged: it has another promotion, or the caller was elsewhere after
-- it had been promoted.
local function is_back()
    return tonumber(promotion) < tonumber(ARGV[4])
        or ARGV[1] ~= '' and ARGV[1] ~= now and ends - ARGV[2] < millis - ARGV[3]
end
if known ~= now then
    -- Slots that moved brought the epoch of another server with them.
    ends = now == ARGV[1] and 0 or millis + ARGV[2]
    promotion = ARGV[4]
elseif is_back() then
    ends = millis + ARGV[2]
    promotion = math.max(promotion, ARGV[4])
else
    return { now, math.max(0, ends - millis) }
end
redis.call('SET', KEYS[1], string.format('%s %.0f %.0f', now, promotion, ends))
return { now, math.max(0, ends - millis) }
