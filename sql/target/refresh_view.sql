-- name: refresh_view
-- Whether a materialized view ($1, quoted) can be refreshed while it is read: it is populated, and a unique index on plain
-- columns covers all of its rows (PostgreSQL's manual, REFRESH MATERIALIZED VIEW). No row when there is no such view.
SELECT c.relispopulated
       AND EXISTS (SELECT
                     FROM pg_catalog.pg_index i
                    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                      AND i.indpred IS NULL AND 0 <> ALL (i.indkey::int2[])) AS can_be_read
  FROM pg_catalog.pg_class c
 WHERE c.oid = to_regclass($1) AND c.relkind = 'm'
