-- name: server
-- What the server allows and how much of it is taken, and what this role may do there.
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
       current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_catalog.pg_replication_slots),
       current_setting('max_wal_senders')::int,
       (SELECT count(*) FROM pg_catalog.pg_stat_replication),
       current_setting('max_slot_wal_keep_size'),
       (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
       coalesce((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout'), 0),
       current_user::text, current_database()::text,
       has_database_privilege(current_database(), 'CREATE'),
       coalesce(h.may_beat, false), h.may_beat IS NOT NULL
  FROM (SELECT 1) AS one
  LEFT JOIN LATERAL (
        SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
               AND has_table_privilege(c.oid, 'UPDATE') AS may_beat
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'cdc' AND c.relname = 'heartbeat'
  ) AS h ON true
