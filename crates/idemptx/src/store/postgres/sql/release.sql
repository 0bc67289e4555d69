-- Gives a claim up, and wakes whoever waits for it. $1 id, $2 token, $3 the channel.
WITH released AS (
    DELETE FROM {records}
    WHERE id = $1 AND token = $2 AND state = 'R' AND expires_at > clock_timestamp()
    RETURNING id, awaited
)
SELECT CASE WHEN awaited THEN pg_notify($3, encode(id, 'hex'))::text END FROM released
