-- Replaces the very record that a bid names, in the state it names.
-- $1 id, $2 token of what is replaced, $3 whether that is an orphan, $4 token, $5 record of the
-- claim, $6 term and $7 retention in milliseconds.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
UPDATE {records} AS r SET
    token = $4,
    state = 'R',
    fence = greatest(r.fence + 1, (extract(epoch FROM moment.now) * 1000000)::int8),
    attempt = least(r.attempt, 2147483646) + 1,
    -- Whoever waits for an orphan waits for its successor.
    awaited = r.awaited AND $3,
    lease_until = moment.now + $6 * interval '1 millisecond',
    expires_at = moment.now + $7 * interval '1 millisecond',
    due_at = least(r.due_at, moment.now + $7 * interval '1 millisecond'),
    record = overlay($5 PLACING
        int8send(greatest(r.fence + 1, (extract(epoch FROM moment.now) * 1000000)::int8))
        || int4send(least(r.attempt, 2147483646) + 1) FROM 52),
    response = NULL,
    response_until = NULL
FROM moment
WHERE r.id = $1 AND r.token = $2 AND r.expires_at > moment.now
    AND CASE WHEN $3 THEN r.state = 'R' AND r.lease_until <= moment.now ELSE r.state <> 'R' END
RETURNING r.fence, r.attempt
