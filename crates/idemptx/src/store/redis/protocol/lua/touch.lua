-- Writes what is there already, so that replicas have something to acknowledge. KEYS: the record.
-- ARGV: `all` for the number of replicas that are connected, which takes `+info`.
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
if ARGV[1] ~= 'all' then return 0 end
return tonumber(string.match(redis.call('INFO', 'replication'), 'connected_slaves:(%d+)')) or 0
