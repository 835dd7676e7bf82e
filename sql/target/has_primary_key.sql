-- name: has_primary_key
-- Whether the table of that qualified name has a primary key.
SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1::text::regclass AND i.indisprimary)
