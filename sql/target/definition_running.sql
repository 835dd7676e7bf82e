-- name: definition_running
-- Sessions of this database other than ours that are busy with a statement that begins like one of $1: ours, from before
-- its connection was lost. A server notices that only when it has something to say.
SELECT count(*)
  FROM pg_catalog.pg_stat_activity a
 WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid() AND a.state = 'active'
   AND EXISTS (SELECT FROM unnest($1::text[]) AS w (beginning) WHERE starts_with(a.query, w.beginning))
