-- Writes what is there already, so that replicas have something to acknowledge. KEYS: the record.
local left = redis.call('PTTL', KEYS[1])
return left > 0 and redis.call('PEXPIRE', KEYS[1], left) or 0
