-- Tells whoever waits for the end of this claim; a hint, so its failure fails nothing.
local function wake(record, publish, channel)
    if is_awaited(record) then
        -- The id in text is what the key has in its last braces.
        redis.pcall(publish, channel, string.match(KEYS[1], '{([^{}]*)}$'))
    end
end
