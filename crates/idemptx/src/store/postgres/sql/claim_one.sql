-- As `claim.sql`, for one request: a single claim is faster without arrays.
-- $1 id, $2 token, $3 record of the claim, $4 term and $5 retention in milliseconds.
WITH granted AS (
    INSERT INTO {records}
        (id, token, state, fence, attempt, lease_until, expires_at, due_at, record)
    SELECT $1, $2, 'R', moment.fence, 1,
        moment.now + $4 * interval '1 millisecond',
        moment.now + $5 * interval '1 millisecond',
        moment.now + $5 * interval '1 millisecond',
        overlay($3 PLACING int8send(moment.fence) FROM 52)
    FROM (
        SELECT now, (extract(epoch FROM now) * 1000000)::int8 AS fence
        FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock
        OFFSET 0
    ) AS moment
    WHERE NOT EXISTS (SELECT FROM {records} AS r WHERE r.id = $1)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, fence
)
SELECT id, fence, NULL::bytea AS record, NULL::int8 AS remaining, NULL::bytea AS response,
    NULL::bool AS expired
FROM granted
UNION ALL
SELECT r.id, NULL, r.record, (extract(epoch FROM r.lease_until - moment.now) * 1000000)::int8,
    CASE WHEN r.response_until > moment.now THEN r.response END, r.expires_at <= moment.now
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
JOIN {records} AS r ON r.id = $1
WHERE NOT EXISTS (SELECT FROM granted)
