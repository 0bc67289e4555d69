-- Starts the term of a lease anew. KEYS: the record. ARGV: the claim's id and token.
local old = redis.call('GETRANGE', KEYS[1], 0, 142)
if #old < 143 or claim_of(old) ~= ARGV[1] or state(old) ~= 'R' then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], retention(old))
