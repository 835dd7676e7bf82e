-- name: copy_mark_range
-- Mark this transaction with a token, and forget the one before ($2) and what killed runs left; its id is returned.
WITH forgotten AS (
    DELETE FROM cdc.copied_range WHERE token = $2::uuid OR copied_at < pg_catalog.now() - interval '1 day'
)
INSERT INTO cdc.copied_range (token) VALUES ($1::uuid) RETURNING pg_catalog.pg_current_xact_id()::text
