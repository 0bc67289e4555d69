-- The head of a record, as the `record` module of idemptx-core lays it out; Lua counts from 1.

local function state(record)
    return string.sub(record, 2, 2)
end

-- Whose claim it is: the record's id and the token.
local function claim_of(record)
    return string.sub(record, 4, 51)
end

local function is_awaited(record)
    return string.byte(record, 3) % 2 == 1
end

local function retention(record)
    -- In brackets: `unpack` also returns where it stopped.
    return (struct.unpack('>I8', record, 120))
end

-- Whether it is a record of this format and of this id: nothing else is ever written over.
local function is_own(record, id)
    return #record >= 143
        and string.byte(record, 1) == 2
        and string.find('RDNUS', state(record), 1, true) ~= nil
        and string.byte(record, 3) < 4
        and string.sub(record, 4, 35) == id
end
