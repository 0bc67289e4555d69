-- Lists what stands between two ids, without responses. $1 first id, $2 last id, $3 how many to walk
-- at most, $4 the letters of the states that are asked for.
-- The last one walked is always told, since the next page begins behind it.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
),
walked AS MATERIALIZED (
    SELECT r.id, r.state, r.expires_at, r.lease_until, r.response_until, r.fence,
        substring(r.record FROM 1 FOR 783) AS head,
        octet_length(r.record) AS record_bytes,
        octet_length(r.response) AS response_bytes
    FROM {records} AS r
    WHERE r.id BETWEEN $1 AND $2
    ORDER BY r.id
    LIMIT $3
),
counted AS (
    SELECT *, count(*) OVER () AS walked, row_number() OVER (ORDER BY id) AS place FROM walked
)
SELECT c.id, c.head, c.walked,
    (CASE WHEN c.response_until IS NULL THEN c.record_bytes - 143
        WHEN c.response_until > moment.now THEN c.response_bytes END)::int8 AS payload,
    (extract(epoch FROM c.lease_until - moment.now) * 1000000)::int8 AS remaining,
    (extract(epoch FROM c.expires_at - moment.now) * 1000000)::int8 AS expires_in,
    (extract(epoch FROM moment.now) * 1000000)::int8 - c.fence AS age
FROM counted AS c, moment
WHERE c.state = ANY ($4::text[]::"char"[]) OR c.place = c.walked
ORDER BY c.id
