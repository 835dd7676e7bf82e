-- name: read_tables
-- The state of every table of a pipeline's target.
SELECT t.source_schema, t.source_table, t.target_schema, t.target_table, t.state, t.position::text,
       t.consistent_from::text, t.reason, t.mend, t.sqlstate, t.stopped_at, t.inserted, t.updated, t.deleted, t.truncated,
       t.created_by_cdc, t.source_oid, t.source_filenode, t.source_attributes, t.stopped_in_overlap
  FROM cdc.target_table t
 WHERE t.pipeline = $1
 ORDER BY t.source_schema, t.source_table
