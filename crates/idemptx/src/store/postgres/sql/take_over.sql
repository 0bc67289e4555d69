-- Replaces a record in the state that is named: `expired`, or with the token of a bid, `orphan` or
-- `settled`. $1 id, $2 token of what is replaced, $3 the state, $4 token, $5 record of the claim,
-- $6 term and $7 retention in milliseconds.
UPDATE {records} AS r SET
    token = $4,
    state = 'R',
    fence = greatest(r.fence + 1, moment.fence),
    attempt = CASE $3 WHEN 'expired' THEN 1 ELSE least(r.attempt, 2147483646) + 1 END,
    -- Whoever waits for an orphan waits for its successor.
    awaited = r.awaited AND $3 = 'orphan',
    lease_until = moment.now + $6 * interval '1 millisecond',
    expires_at = moment.now + $7 * interval '1 millisecond',
    due_at = least(r.due_at, moment.now + $7 * interval '1 millisecond'),
    record = overlay($5 PLACING
        int8send(greatest(r.fence + 1, moment.fence))
        || int4send(CASE $3 WHEN 'expired' THEN 1 ELSE least(r.attempt, 2147483646) + 1 END)
        FROM 52),
    response = NULL,
    response_until = NULL
FROM (
    SELECT now, (extract(epoch FROM now) * 1000000)::int8 AS fence
    FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock
    OFFSET 0
) AS moment
WHERE r.id = $1 AND CASE $3
    WHEN 'expired' THEN r.expires_at <= moment.now
    WHEN 'orphan' THEN r.expires_at > moment.now AND r.token = $2
        AND r.state = 'R' AND r.lease_until <= moment.now
    ELSE r.expires_at > moment.now AND r.token = $2 AND r.state <> 'R'
END
RETURNING r.fence, r.attempt
