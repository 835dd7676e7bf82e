-- name: refresh_views
-- The materialized views that applied files of the enrichment name, each once, in the order of the files (as they are run).
SELECT name
  FROM (SELECT DISTINCT ON (w.name) w.name, e.file COLLATE "C" AS file, w.place
          FROM cdc.enrichment e
          CROSS JOIN LATERAL unnest(e.refreshes) WITH ORDINALITY AS w (name, place)
         WHERE e.pipeline = $1 AND e.applied_at IS NOT NULL
         ORDER BY w.name, e.file COLLATE "C", w.place) AS named
 ORDER BY file, place
