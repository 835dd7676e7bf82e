-- name: drop_lane_slot
-- Drop a lane's slot, if the shared slot is read by our process and still has all that the lane's target lacks.
SELECT pg_drop_replication_slot(own.slot_name)
  FROM pg_catalog.pg_replication_slots AS own
  JOIN pg_catalog.pg_replication_slots AS shared ON shared.slot_name = %(shared)s::text
 WHERE own.slot_name = %(name)s::text
   AND shared.active_pid = %(pid)s::integer
   AND shared.confirmed_flush_lsn <= %(position)s::pg_lsn
