-- Reads a record. KEYS: the record and, if it is kept apart, its response. ARGV: the record's id.
local record = redis.call('GET', KEYS[1])
if not record then
    return false
end
local meaning, detail = see(record, ARGV[1])
return { meaning, record, detail }
