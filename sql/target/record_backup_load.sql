-- name: record_backup_load
-- From here on the load relies on a backup that holds this heartbeat, or a later one.
INSERT INTO cdc.backup_load AS b (pipeline, slot, first_heartbeat, asked_at)
VALUES ($1, $2, $3, $4)
    ON CONFLICT (pipeline) DO UPDATE
   SET slot = EXCLUDED.slot, first_heartbeat = EXCLUDED.first_heartbeat, asked_at = EXCLUDED.asked_at,
       backup = NULL
