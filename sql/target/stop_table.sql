-- name: stop_table
-- A table that cannot go on: it keeps the position up to which it holds everything, and whether it was in overlap.
INSERT INTO cdc.target_table AS t
       (pipeline, source_schema, source_table, target_schema, target_table, state, position, reason, mend, sqlstate, stopped_at)
VALUES ($1, $2, $3, $4, $5, 'stopped', $6::text::pg_lsn, $7, $8, $9, pg_catalog.clock_timestamp())
    ON CONFLICT (pipeline, source_schema, source_table) DO UPDATE
   SET state = EXCLUDED.state, position = EXCLUDED.position, reason = EXCLUDED.reason, mend = EXCLUDED.mend,
       sqlstate = EXCLUDED.sqlstate, stopped_at = EXCLUDED.stopped_at,
       stopped_in_overlap = t.state = 'overlap' OR (t.state = 'stopped' AND t.stopped_in_overlap)
