-- name: swap_holders
-- Which transactions, ours excepted, hold locks on relations (oids) that the strongest lock would wait for. Vacuum's lock is
-- left out: autovacuum gives way. Virtual transaction ids are visible to every role, the start of a transaction is not.
SELECT DISTINCT l.virtualtransaction || '/' || coalesce(l.pid, 0) AS holder, l.pid, min(l.relation::regclass::text) AS relation
  FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'relation' AND l.granted
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
   AND l.relation = ANY ($1::oid[])
   AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
   AND l.mode <> 'ShareUpdateExclusiveLock'
 GROUP BY 1, 2
