-- Gives a claim up, and tells whether its end is waited for. $1 id, $2 token.
DELETE FROM {records}
WHERE id = $1 AND token = $2 AND state = 'R' AND expires_at > clock_timestamp()
RETURNING awaited
