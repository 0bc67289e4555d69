-- Claims for a batch of requests: inserts those whose key is new, and reads the records of the
-- others. A row that exists is not inserted even in vain: `ON CONFLICT` alone waits for the
-- transaction of a handler that has settled the row and is still open.
-- $1 ids in ascending order, in which they are locked, $2 tokens, $3 records of the claims, $4
-- terms and $5 retentions in milliseconds, $6 after how many bytes no further record is read: a row
-- without a record says that it must be asked for again.
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
SELECT f.id, NULL, CASE WHEN f.fits THEN f.record END, f.remaining,
    CASE WHEN f.fits AND f.has_response THEN f.response END, f.expired
FROM (
    SELECT r.id, r.record, r.response, r.expires_at <= moment.now AS expired,
        (extract(epoch FROM r.lease_until - moment.now) * 1000000)::int8 AS remaining,
        r.response_until > moment.now AS has_response,
        -- The lengths are known without reading what they are the lengths of.
        coalesce(sum(octet_length(r.record) + coalesce(octet_length(r.response), 0))
            OVER (ORDER BY r.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) < $6 AS fits
    FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
    CROSS JOIN unnest($1::bytea[]) AS b (id)
    JOIN {records} AS r ON r.id = b.id
    WHERE (SELECT count(*) FROM granted) < cardinality($1)
) AS f
