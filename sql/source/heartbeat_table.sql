-- name: heartbeat_table
-- The one table that cdc has on a source: a row for each pipeline, updated in place. It is not published.
CREATE TABLE IF NOT EXISTS cdc.heartbeat (
    pipeline text PRIMARY KEY,
    count bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
    system_identifier text NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0)
