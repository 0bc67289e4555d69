-- Makes a batch of results final, and tells which of them are waited for.
-- $1 ids in ascending order, in which they are locked, $2 tokens, $3 states, $4 records, $5 their
-- retentions in milliseconds, $6 responses that are kept apart and $7 their retentions.
WITH settled AS (
    UPDATE {records} AS r SET
        state = done.state::"char",
        expires_at = done.now + done.retain * interval '1 millisecond',
        due_at = least(r.due_at,
            done.now + coalesce(done.response_retain, done.retain) * interval '1 millisecond'),
        record = done.record,
        response = done.response,
        response_until = done.now + done.response_retain * interval '1 millisecond'
    FROM (
        SELECT d.*, moment.now
        FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
        CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::text[], $4::bytea[], $5::int8[],
            $6::bytea[], $7::int8[])
            AS d (id, token, state, record, retain, response, response_retain)
        OFFSET 0
    ) AS done
    WHERE r.id = done.id AND r.token = done.token AND r.state = 'R' AND r.expires_at > done.now
        {within}
    RETURNING r.id, r.awaited
)
SELECT id, {awaited} FROM settled
