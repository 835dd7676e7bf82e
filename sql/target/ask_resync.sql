-- name: ask_resync
-- Ask for a table to be read again, unless somebody has already: then only the pace is taken over.
INSERT INTO cdc.resync AS r (pipeline, source_schema, source_table, max_rows_per_second)
VALUES ($1, $2, $3, $4)
    ON CONFLICT (pipeline, source_schema, source_table) WHERE finished_at IS NULL DO UPDATE
   SET max_rows_per_second = EXCLUDED.max_rows_per_second
RETURNING request
