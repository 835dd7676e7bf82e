-- name: copy_hold_fence
-- One row while the target is still ours; nobody can take it until this transaction ends.
SELECT FROM cdc.target WHERE pipeline = $1 AND fence = $2 FOR SHARE
