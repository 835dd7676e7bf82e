-- name: end_resync_run
-- The run ($2) of a request ($1) has ended ($3): its rows are one step, its duration that of the run.
WITH ended AS (
    UPDATE cdc.bootstrap_run
       SET finished_at = pg_catalog.clock_timestamp(), outcome = $3
     WHERE run = $2
    RETURNING run, started_at, finished_at
)
INSERT INTO cdc.bootstrap_step (run, kind, object, started_at, finished_at, row_count)
SELECT ended.run, 'copy', r.source_schema || '.' || r.source_table, ended.started_at,
       CASE WHEN $3 = 'done' THEN ended.finished_at END, r.row_count
  FROM ended, cdc.resync r
 WHERE r.request = $1
