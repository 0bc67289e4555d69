-- Claims for a batch of bids, none of which may replace anything but what has expired.
-- $1 ids, $2 tokens, $3 records of the claims, $4 terms and $5 retentions in milliseconds.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
),
bid AS MATERIALIZED (
    SELECT b.id, b.token, b.record, b.term, b.retain, moment.now,
        r.record AS found, r.lease_until, r.response, r.response_until
    FROM moment
    CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::int8[], $5::int8[])
        AS b (id, token, record, term, retain)
    LEFT JOIN {records} AS r ON r.id = b.id AND r.expires_at > moment.now
),
granted AS (
    INSERT INTO {records} AS r
        (id, token, state, fence, attempt, lease_until, expires_at, due_at, record)
    SELECT id, token, 'R', fence, 1,
        now + term * interval '1 millisecond',
        now + retain * interval '1 millisecond',
        now + retain * interval '1 millisecond',
        overlay(record PLACING int8send(fence) FROM 52)
    FROM (
        SELECT *, (extract(epoch FROM now) * 1000000)::int8 AS fence FROM bid WHERE found IS NULL
    ) AS fresh
    ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        token = excluded.token,
        state = excluded.state,
        fence = greatest(r.fence + 1, excluded.fence),
        attempt = excluded.attempt,
        awaited = false,
        lease_until = excluded.lease_until,
        expires_at = excluded.expires_at,
        due_at = excluded.due_at,
        record = overlay(
            excluded.record PLACING int8send(greatest(r.fence + 1, excluded.fence)) FROM 52),
        response = NULL,
        response_until = NULL
    WHERE r.expires_at <= (SELECT now FROM moment)
    RETURNING r.id, r.fence
)
SELECT id, fence, NULL::bytea AS record, NULL::int8 AS remaining, NULL::bytea AS response
FROM granted
UNION ALL
SELECT id, NULL, found, (extract(epoch FROM lease_until - now) * 1000000)::int8,
    CASE WHEN response_until > now THEN response END
FROM bid WHERE found IS NOT NULL
