-- name: copy_outcome
-- What became of a transaction whose COMMIT got no answer: in progress, committed or aborted.
SELECT pg_catalog.pg_xact_status($1::text::xid8)
