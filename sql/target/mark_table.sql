-- name: mark_table
-- A table that is about to be loaded, or has been: what there was to say about it before is over.
INSERT INTO cdc.target_table AS t
       (pipeline, source_schema, source_table, target_schema, target_table, state, position, consistent_from, created_by_cdc,
        source_oid, source_filenode, source_attributes)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::pg_lsn, $7::text::pg_lsn, $8, $9, $10, $11)
    ON CONFLICT (pipeline, source_schema, source_table) DO UPDATE
   SET target_schema = EXCLUDED.target_schema, target_table = EXCLUDED.target_table, state = EXCLUDED.state,
       position = EXCLUDED.position, consistent_from = EXCLUDED.consistent_from,
       created_by_cdc = t.created_by_cdc OR EXCLUDED.created_by_cdc,
       source_oid = coalesce(EXCLUDED.source_oid, t.source_oid),
       source_filenode = coalesce(EXCLUDED.source_filenode, t.source_filenode),
       source_attributes = coalesce(EXCLUDED.source_attributes, t.source_attributes),
       reason = NULL, mend = NULL, sqlstate = NULL, stopped_at = NULL, stopped_in_overlap = false,
       inserted = 0, updated = 0, deleted = 0, truncated = 0
