-- name: heartbeat_row
-- The row of a pipeline, written once: its incarnation stays until teardown, and the system identifier tells a copy of
-- this database from the original.
INSERT INTO cdc.heartbeat (pipeline, system_identifier)
SELECT %(pipeline)s::text, s.system_identifier::text FROM pg_catalog.pg_control_system() AS s
ON CONFLICT (pipeline) DO NOTHING
