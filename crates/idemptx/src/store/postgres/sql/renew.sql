-- Starts the term of a lease anew. $1 id, $2 token, $3 term and $4 retention in milliseconds.
UPDATE {records} AS r SET
    lease_until = moment.now + $3 * interval '1 millisecond',
    expires_at = moment.now + $4 * interval '1 millisecond'
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
WHERE r.id = $1 AND r.token = $2 AND r.state = 'R' AND r.expires_at > moment.now
RETURNING true
