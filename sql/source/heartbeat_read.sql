-- name: heartbeat_read
-- The last heartbeat of a pipeline.
SELECT pipeline, count, at, incarnation FROM cdc.heartbeat WHERE pipeline = %(pipeline)s::text
