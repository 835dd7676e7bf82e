-- name: ask_resync
-- Ask for a table to be read again, unless somebody has already: then only the pace is taken over, unless it is the worker who
-- asks ($5), and the larger of the two wishes: all of it rather than what some partitions hold ($6).
INSERT INTO cdc.resync AS r (pipeline, source_schema, source_table, max_rows_per_second, by_itself, partitions_only)
VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (pipeline, source_schema, source_table) WHERE finished_at IS NULL DO UPDATE
   SET max_rows_per_second = CASE WHEN EXCLUDED.by_itself THEN r.max_rows_per_second ELSE EXCLUDED.max_rows_per_second END,
       by_itself = r.by_itself OR EXCLUDED.by_itself,
       partitions_only = r.partitions_only AND EXCLUDED.partitions_only
RETURNING request
