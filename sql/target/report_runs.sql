-- name: report_runs
-- The newest runs ($2 of them) of a pipeline ($1) into this database, the last one first.
SELECT r.run, r.origin, r.started_at, r.finished_at, r.outcome
  FROM cdc.bootstrap_run r
 WHERE r.pipeline = $1
 ORDER BY r.run DESC
 LIMIT $2
