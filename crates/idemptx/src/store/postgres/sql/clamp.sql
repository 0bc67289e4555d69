-- Shortens a claim to its term and its retention from now, where the server's clock went back, as
-- it does when a standby with another clock is promoted. $1 id, $2 token, $3 term and $4 retention
-- in milliseconds.
UPDATE {records} AS r SET
    lease_until = least(r.lease_until, moment.now + $3 * interval '1 millisecond'),
    expires_at = least(r.expires_at, moment.now + $4 * interval '1 millisecond'),
    due_at = least(r.due_at, moment.now + $4 * interval '1 millisecond')
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS moment
WHERE r.id = $1 AND r.token = $2 AND r.state = 'R'
    AND r.lease_until > moment.now + $3 * interval '1 millisecond'
RETURNING true
