-- name: read_backup_load
-- The backup that a generation of a target is being loaded from; no row when it is not.
SELECT b.slot, b.first_heartbeat, b.asked_at, b.backup, b.heartbeat FROM cdc.backup_load b WHERE b.pipeline = $1
