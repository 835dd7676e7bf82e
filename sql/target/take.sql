-- name: take
-- Become the owner of a target, unless somebody else has been since its fence was read ($2), or it is being loaded ($3: by us).
UPDATE cdc.target t
   SET fence = t.fence + 1,
       backend_pid = pg_catalog.pg_backend_pid(),
       backend_start = (SELECT a.backend_start FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid())
 WHERE t.pipeline = $1 AND t.fence = $2 AND ($3 OR t.state <> 'loading')
RETURNING t.fence, t.target, t.state, t.position::text, t.system_identifier, t.timeline, t.slot, t.incarnation,
          t.cut_over_heartbeat, t.consistent_at::text, t.consistent_time
