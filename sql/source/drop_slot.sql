-- name: drop_slot
-- Drop a slot if it exists; no row when it does not.
SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = %(name)s::text
