-- name: hold_ownership
-- One row while this very session owns the target; nobody can take it until this transaction ends.
SELECT FROM cdc.target WHERE pipeline = $1 AND backend_pid = pg_catalog.pg_backend_pid() FOR NO KEY UPDATE
