-- Claims for a batch of requests: inserts those whose key is new, and reads the records of the
-- others. A row that exists is not inserted even in vain: `ON CONFLICT` alone waits for the
-- transaction of a handler that has settled the row and is still open. $1 ids in ascending order, in which they are locked, $2 tokens, $3 records of the claims,
-- $4 terms and $5 retentions in milliseconds.
WITH granted AS (
    INSERT INTO {records}
        (id, token, state, fence, attempt, lease_until, expires_at, due_at, record)
    SELECT b.id, b.token, 'R', moment.fence, 1,
        moment.now + b.term * interval '1 millisecond',
        moment.now + b.retain * interval '1 millisecond',
        moment.now + b.retain * interval '1 millisecond',
        overlay(b.record PLACING int8send(moment.fence) FROM 52)
    FROM (
        SELECT now, (extract(epoch FROM now) * 1000000)::int8 AS fence
        FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock
        OFFSET 0
    ) AS moment
    CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::int8[], $5::int8[])
        AS b (id, token, record, term, retain)
    WHERE NOT EXISTS (SELECT FROM {records} AS r WHERE r.id = b.id)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, fence
)
SELECT id, fence, NULL::bytea AS record, NULL::int8 AS remaining, NULL::bytea AS response,
    NULL::bool AS expired
FROM granted
UNION ALL
-- The snapshot does not show what was inserted just now.
SELECT r.id, NULL, r.record, (extract(epoch FROM r.lease_until - moment.now) * 1000000)::int8,
    CASE WHEN r.response_until > moment.now THEN r.response END, r.expires_at <= moment.now
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
CROSS JOIN unnest($1::bytea[]) AS b (id)
JOIN {records} AS r ON r.id = b.id
WHERE (SELECT count(*) FROM granted) < cardinality($1)
