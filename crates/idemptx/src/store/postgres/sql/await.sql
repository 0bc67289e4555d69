-- Marks a claim as awaited, so that its end is told; no row if nobody claims it. $1 id.
WITH marked AS (
    UPDATE {records} SET awaited = true
    WHERE id = $1 AND state = 'R' AND NOT awaited AND expires_at > clock_timestamp()
    RETURNING true
)
SELECT true FROM marked
UNION ALL
SELECT true FROM {records}
WHERE id = $1 AND state = 'R' AND awaited AND expires_at > clock_timestamp()
