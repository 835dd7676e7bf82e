-- name: copy_forget_range
-- Remove the token of a range whose COMMIT was answered.
DELETE FROM cdc.copied_range WHERE token = $1::uuid
