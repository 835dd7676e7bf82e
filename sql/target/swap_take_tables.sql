-- name: swap_take_tables
-- The tables of a generation ($2, a key) become the pipeline's ($1), under the names that readers know: source schemas $3 and
-- tables $4, and the schemas $5 that each stands in now. With $6 each keeps a position of its own, the generation's or a later one.
UPDATE cdc.target_table t
   SET pipeline = $1,
       target_schema = w.target_schema,
       position = CASE WHEN $6::boolean THEN greatest(t.position, g.position) ELSE t.position END
  FROM unnest($3::text[], $4::text[], $5::text[]) AS w (source_schema, source_table, target_schema),
       cdc.target g
 WHERE t.pipeline = $2 AND t.source_schema = w.source_schema AND t.source_table = w.source_table AND g.pipeline = $2
