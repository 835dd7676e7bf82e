-- name: report_steps
-- The steps of runs ($1), as they began.
SELECT s.run, s.kind, s.object, s.started_at, s.finished_at, s.row_count, s.size_bytes
  FROM cdc.bootstrap_step s
 WHERE s.run = ANY ($1::bigint[])
 ORDER BY s.run, s.step
