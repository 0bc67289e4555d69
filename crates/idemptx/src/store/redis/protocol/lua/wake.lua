-- Tells whoever waits for the end of this claim; a hint, so its failure fails nothing.
local function wake(record, channel, id)
    if is_awaited(record) then
        redis.pcall('PUBLISH', channel, id)
    end
end
