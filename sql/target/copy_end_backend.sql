-- name: copy_end_backend
-- End the backend of a connection that we have lost, so that its transaction is decided.
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND backend_xid = $2::text::xid8::xid
