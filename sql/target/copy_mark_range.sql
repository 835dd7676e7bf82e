-- name: copy_mark_range
-- Mark this transaction with a token, and forget the one before ($2) and, without waiting for anybody, what former owners of
-- the target left, who write no more; its id is returned.
WITH forgotten AS (
    DELETE FROM cdc.copied_range
     WHERE token = $2::uuid
        OR token IN (
           SELECT former.token FROM cdc.copied_range former WHERE former.pipeline = $3 AND former.fence < $4
              FOR UPDATE SKIP LOCKED)
)
INSERT INTO cdc.copied_range (token, pipeline, fence) VALUES ($1::uuid, $3, $4)
RETURNING pg_catalog.pg_current_xact_id()::text
