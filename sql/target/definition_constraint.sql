-- name: definition_constraint
-- Whether the constraint named $2 of a table ($1, quoted) is validated. No row when there is none.
SELECT k.convalidated FROM pg_catalog.pg_constraint k WHERE k.conrelid = to_regclass($1) AND k.conname = $2
