-- name: copy_forget_range
DELETE FROM cdc.copied_range WHERE token = $1::uuid
