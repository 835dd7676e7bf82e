-- name: read_target
-- What is known about this database as a target of a pipeline.
SELECT t.pipeline, t.target, t.state, t.fence, t.position::text, t.system_identifier, t.timeline, t.slot, t.incarnation,
       t.consistent_at::text, t.transactions, t.heartbeat_count, t.heartbeat_at, t.last_error, t.last_error_at,
       t.cut_over_heartbeat, t.consistent_time, t.only_tables
  FROM cdc.target t
 WHERE t.pipeline = $1
