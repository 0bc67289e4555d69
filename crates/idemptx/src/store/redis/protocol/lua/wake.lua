-- The end of a script that ended the claim `old`: tells whoever waits for that. A hint, so its
-- failure fails nothing. ARGV: first the command and the channel of wake-ups, with a space between.
if string.byte(old, 3) % 2 == 1 then
    local publish, channel = string.match(ARGV[1], '^(%u+) (.*)$')
    -- The id in text is what the key has in its last braces.
    redis.pcall(publish, channel, string.match(KEYS[1], '{([^{}]*)}$'))
end
return 1
