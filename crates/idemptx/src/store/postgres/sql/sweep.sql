-- Forgets what has expired, among at most $1 records that are due and that nobody is busy with.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
),
due AS MATERIALIZED (
    SELECT id FROM {records}
    WHERE due_at <= (SELECT now FROM moment)
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
SELECT count(*) FROM due
