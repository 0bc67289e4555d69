CREATE TABLE {records} (
    -- Greater than that of any earlier owner.
    fence bigint NOT NULL,
    lease_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- When to look whether something has expired: then, or earlier.
    due_at timestamptz NOT NULL,
    -- Of a response that expires before its key; it stands in a column of its own.
    response_until timestamptz,
    attempt integer NOT NULL,
    -- Whether somebody waits to be told of the end of this claim.
    awaited boolean NOT NULL DEFAULT false,
    -- R running, D done, N done without a body, U unknown.
    state "char" NOT NULL,
    id bytea PRIMARY KEY,
    token bytea NOT NULL,
    -- In the format that all stores share.
    record bytea NOT NULL,
    response bytea
) WITH (
    -- Settling and renewing find room on the record's own page, and touch no index.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    -- Responses that do not fit into a page come and go as often as the rows.
    toast.autovacuum_vacuum_scale_factor = 0.05
);
CREATE INDEX {due} ON {records} (due_at);
