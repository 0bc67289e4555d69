-- Names the commands of the other scripts that the user may not run; changes nothing. KEYS: the name
-- of a record that nobody has.
local lacking = {}
local function try(command, ...)
    local reply = redis.pcall(command, ...)
    local text = type(reply) == 'table' and reply.err or ''
    -- Servers say it in different words.
    if string.find(text, 'NOPERM', 1, true) or string.find(text, "can't run this command", 1, true)
        or string.find(text, 'ACL failure', 1, true) then
        lacking[#lacking + 1] = command
    end
end
try('GET', KEYS[1])
try('GETRANGE', KEYS[1], 0, 0)
try('SETRANGE', KEYS[1], 0, '')
try('SET', KEYS[1], '', 'XX')
try('PTTL', KEYS[1])
try('PEXPIRE', KEYS[1], 1)
try('DEL', KEYS[1])
try('TIME')
return lacking
