-- name: heartbeat_schema
-- The schema of cdc on the source. It may be there already: a source can be the target of another pipeline.
CREATE SCHEMA IF NOT EXISTS cdc
