-- name: swap_advance_whole
-- A whole generation ($2, a key) takes the place of the pipeline's ($1): its position and what goes with it, under the next
-- fence, in state $3, so that the former owner cannot commit any more. The slot stays that of the lane that the target comes back to.
UPDATE cdc.target t
   SET state = $3,
       fence = t.fence + 1,
       position = g.position,
       system_identifier = g.system_identifier,
       timeline = g.timeline,
       slot = coalesce(t.slot, g.slot),
       incarnation = g.incarnation,
       consistent_at = g.consistent_at,
       consistent_time = g.consistent_time,
       cut_over_heartbeat = NULL,
       transactions = g.transactions,
       heartbeat_count = g.heartbeat_count,
       heartbeat_at = g.heartbeat_at,
       source_commit_at = g.source_commit_at,
       applied_at = g.applied_at,
       last_error = NULL,
       last_error_at = NULL
  FROM cdc.target g
 WHERE t.pipeline = $1 AND g.pipeline = $2
