-- name: slots
-- A slot and the lanes copied from it, on any version (columns that a version lacks read as null); what a
-- slot retains is counted from the end of the WAL that the server has written, or replayed.
SELECT s.slot_name::text, s.plugin::text, s.slot_type, s.database::text, s.active, s.active_pid,
       s.restart_lsn, s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       s.restart_lsn)::bigint AS retained_bytes,
       s.temporary,
       (to_jsonb(s) ->> 'failover')::boolean AS failover,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidation_reason
  FROM pg_catalog.pg_replication_slots s
 WHERE s.slot_name = %(name)s::text OR starts_with(s.slot_name::text, %(name)s::text || '__')
 ORDER BY s.slot_name
