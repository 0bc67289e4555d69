-- Compares the history of this server's data with the one that was written down beside the data.
-- A server that begins a history of its own (promoted, or started again) may lack what came last.
-- KEYS: the epoch. ARGV: the history that the caller saw last, the grace period in ms, the time in ms since
-- the caller had an answer from a server of that history.
local now = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)
local known, ends = string.match(redis.call('GET', KEYS[1]) or '', '^(%w+) (%d+)$')
if known ~= now then
    -- Slots that moved brought the epoch of another server with them.
    ends = now == ARGV[1] and 0 or millis + ARGV[2]
elseif ARGV[1] ~= now and ARGV[1] ~= '' and ends - ARGV[2] < millis - ARGV[3] then
    -- Another server answered after this one had been promoted, which was replaced and never heard of it:
    -- it lacks what the other one has acknowledged.
    ends = millis + ARGV[2]
else
    return { now, math.max(0, ends - millis) }
end
redis.call('SET', KEYS[1], now .. ' ' .. string.format('%.0f', ends))
return { now, math.max(0, ends - millis) }
