-- name: copy_end_blockers
-- End those of our copies (%(pids)s) that somebody else's lock request waits for; each row is one that was ended.
-- Our own copies that queue behind that request are not somebody else.
SELECT copy.pid
  FROM unnest(%(pids)s::int[]) AS copy (pid)
 WHERE EXISTS (SELECT
                 FROM pg_catalog.pg_locks AS waiting
                WHERE NOT waiting.granted
                  AND waiting.pid <> ALL (%(pids)s::int[])
                  AND copy.pid = ANY (pg_catalog.pg_blocking_pids(waiting.pid)))
   AND pg_catalog.pg_terminate_backend(copy.pid)
