-- Wakes whoever waits for the end of these claims. $1 the channel, $2 ids.
-- A queue that is almost full is left alone: a commit fails for which it has no room.
SELECT CASE WHEN pg_notification_queue_usage() < 0.9
    THEN pg_notify($1, encode(b.id, 'hex'))::text END
FROM unnest($2::bytea[]) AS b (id)
