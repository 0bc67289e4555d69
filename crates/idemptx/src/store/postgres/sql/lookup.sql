-- Reads a record. $1 id.
SELECT r.record, (extract(epoch FROM r.lease_until - moment.now) * 1000000)::int8 AS remaining,
    CASE WHEN r.response_until > moment.now THEN r.response END AS response
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
JOIN {records} AS r ON r.id = $1 AND r.expires_at > moment.now
