-- name: clock
-- What time it is at the source, and where its WAL ends: what it has written, or replayed while it is a standby.
SELECT clock_timestamp(),
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
