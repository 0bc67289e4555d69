-- Tells whoever waits for the end of this claim; a hint, so its failure fails nothing.
local function wake(record, publish, channel, id)
    if is_awaited(record) then
        redis.pcall(publish, channel, id)
    end
end
