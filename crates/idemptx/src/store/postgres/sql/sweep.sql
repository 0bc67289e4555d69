-- Forgets what has expired, among at most $1 records that are due at $2 or later, in microseconds
-- since the Unix epoch, and that nobody is busy with. Tells when the last of them was due, so that
-- the next sweep need not pass the index entries of what is gone: they stay for as long as any
-- transaction of the server is open that could still see the rows.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
),
due AS MATERIALIZED (
    SELECT id, due_at FROM {records}
    WHERE due_at <= (SELECT now FROM moment)
        AND due_at >= timestamptz 'epoch' + $2 * interval '1 microsecond'
    ORDER BY due_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM {records} AS r USING due, moment
    WHERE r.id = due.id AND r.expires_at <= moment.now
),
kept AS (
    UPDATE {records} AS r SET
        due_at = CASE WHEN r.response_until > moment.now
            THEN least(r.response_until, r.expires_at) ELSE r.expires_at END,
        response = CASE WHEN r.response_until > moment.now THEN r.response END
    FROM due, moment
    WHERE r.id = due.id AND r.expires_at > moment.now
)
SELECT count(*) AS count, (extract(epoch FROM max(due_at)) * 1000000)::int8 AS last_due FROM due
