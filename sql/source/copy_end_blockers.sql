-- name: copy_end_blockers
-- End those of our copies (%(pids)s) that somebody else's lock request waits for; each row is one that was ended.
-- Our own copies that queue behind that request are not somebody else. The CASE fixes the order: look, then end.
WITH copies AS MATERIALIZED (
    SELECT copy.pid,
           CASE WHEN EXISTS (SELECT
                               FROM pg_catalog.pg_locks AS waiting
                              WHERE NOT waiting.granted
                                AND waiting.pid <> ALL (%(pids)s::int[])
                                AND copy.pid = ANY (pg_catalog.pg_blocking_pids(waiting.pid)))
                THEN pg_catalog.pg_terminate_backend(copy.pid)
           END AS was_ended
      FROM unnest(%(pids)s::int[]) AS copy (pid)
)
SELECT pid FROM copies WHERE was_ended
