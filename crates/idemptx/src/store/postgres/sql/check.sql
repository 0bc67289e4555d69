-- Everything that decides which guarantee the server can give. $1 the table.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::int4 AS version_number,
    pg_is_in_recovery() AS recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('fsync') = 'on' AS fsync,
    current_setting('full_page_writes') = 'on' AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    -- What sessions have that set nothing themselves.
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS default_commit,
    has_function_privilege('pg_catalog.pg_notify(text, text)', 'EXECUTE') AS may_notify,
    ARRAY(
        SELECT needed.name
        FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed (name)
        WHERE NOT has_table_privilege(to_regclass($1), needed.name)
    ) AS lacking,
    current_setting('synchronous_standby_names') AS standby_names,
    (SELECT relpersistence::text FROM pg_class WHERE oid = to_regclass($1)) AS persistence,
    replication.standbys,
    replication.synchronous,
    replication.hidden
FROM (
    SELECT
        count(*) AS standbys,
        count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous,
        -- What a role sees of the others without pg_read_all_stats.
        count(*) FILTER (WHERE sync_state IS NULL) AS hidden
    FROM pg_stat_replication
) AS replication
