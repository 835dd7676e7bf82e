-- name: column_records
-- From which columns of the source the tables of a pipeline ($1) were loaded, as far as that is recorded: source schemas $2 and
-- tables $3.
SELECT t.source_schema, t.source_table, t.source_columns::text
  FROM cdc.target_table t
  JOIN unnest($2::text[], $3::text[]) AS w (source_schema, source_table) USING (source_schema, source_table)
 WHERE t.pipeline = $1 AND t.source_columns IS NOT NULL
