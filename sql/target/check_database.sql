-- name: check_database
-- What the database and our role in it allow.
SELECT current_user::text AS role,
       pg_catalog.current_database()::text AS database,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMP') AS may_stage,
       pg_catalog.pg_is_in_recovery() AS is_standby,
       pg_catalog.current_setting('default_transaction_read_only')::boolean AS is_read_only,
       pg_catalog.current_setting('fsync')::boolean AS fsync
