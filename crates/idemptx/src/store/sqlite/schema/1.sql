-- Times are microseconds of the store's clock, which begins with the Unix epoch.

CREATE TABLE records (
    -- The record's id, 32 bytes.
    id BLOB NOT NULL PRIMARY KEY,
    -- The record in the format that all stores share.
    record BLOB NOT NULL,
    -- The boot of the host in which it was claimed or renewed: no lease outlives it.
    era INTEGER NOT NULL,
    -- When the lease lapses or, once settled, when the response is forgotten.
    turns INTEGER NOT NULL,
    -- When the record is forgotten.
    expires INTEGER NOT NULL,
    -- When the sweep has something to do with it.
    due INTEGER NOT NULL
) STRICT;

CREATE INDEX records_due ON records (due);

-- One row: what the clock of this file is made of.
CREATE TABLE clock (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Which boot of the host the file is used in.
    boot TEXT NOT NULL,
    -- How many boots there have been.
    era INTEGER NOT NULL,
    -- How far the store's clock is ahead of the host's.
    ahead INTEGER NOT NULL,
    -- A moment that the store's clock has not reached yet; after a boot it goes on from there.
    mark INTEGER NOT NULL
) STRICT;
