-- name: record_history
-- The start of a history: a target that is about to be loaded belongs to this source and slot from this position on.
UPDATE cdc.target t
   SET position = $3::text::pg_lsn, system_identifier = $4, timeline = $5, slot = $6, incarnation = $7, state = $8,
       consistent_at = NULL, consistent_time = NULL, cut_over_heartbeat = NULL, transactions = 0, heartbeat_count = NULL, heartbeat_at = NULL, source_commit_at = NULL,
       applied_at = pg_catalog.clock_timestamp(), last_error = NULL, last_error_at = NULL
 WHERE t.pipeline = $1 AND t.fence = $2
