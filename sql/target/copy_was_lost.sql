-- name: copy_was_lost
-- One row if the transaction with this token did not commit. Waits while that is undecided.
INSERT INTO cdc.copied_range (token, pipeline, fence) VALUES ($1::uuid, '', 0) ON CONFLICT DO NOTHING RETURNING token
