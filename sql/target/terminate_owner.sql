-- name: terminate_owner
-- The fence of a target, after its owner's session has been ended and is gone (NULL: there was none; false: still there).
-- The session that loads a target is left alone, unless whoever asks loads it, too ($3).
SELECT t.fence, t.state = 'loading' AND NOT $3 AS is_refused, t.position IS NULL AS is_empty,
       (SELECT pg_catalog.pg_terminate_backend(a.pid, $2::bigint)
          FROM pg_catalog.pg_stat_activity a
         WHERE a.pid = t.backend_pid AND a.backend_start = t.backend_start
           AND a.datid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
           AND a.pid <> pg_catalog.pg_backend_pid()
           AND (t.state <> 'loading' OR $3)) AS is_gone
  FROM cdc.target t
 WHERE t.pipeline = $1
