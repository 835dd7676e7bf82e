-- name: copy_was_lost
-- One row if the transaction with this token did not commit. Waits while that is undecided.
INSERT INTO cdc.copied_range (token) VALUES ($1::uuid) ON CONFLICT DO NOTHING RETURNING token
