-- name: forget_load
-- What a generation holds cannot be joined to the stream: it has no position any more, and no history.
UPDATE cdc.target t
   SET position = NULL, system_identifier = NULL, timeline = NULL, slot = NULL, incarnation = NULL,
       consistent_at = NULL, consistent_time = NULL, cut_over_heartbeat = NULL
 WHERE t.pipeline = $1 AND t.fence = $2
