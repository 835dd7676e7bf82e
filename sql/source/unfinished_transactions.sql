-- name: unfinished_transactions
-- The transactions up to %(xid)s that have not ended, oldest first, and who runs them: a session, a prepared transaction,
-- or (null) one that ended while this was asked. What a role may not see of other roles' sessions is null, too.
SELECT unfinished.xid::text::bigint, s.pid, s.application_name, s.usename::text, s.datname::text, s.state,
       s.wait_event = 'SyncRep' AS waits_for_standby, p.gid, p.database::text,
       extract(epoch FROM clock_timestamp() - coalesce(p.prepared, s.xact_start))::float8 AS age_s
  FROM pg_snapshot_xip(pg_current_snapshot()) AS unfinished (xid)
  LEFT JOIN pg_stat_activity s ON s.backend_xid = unfinished.xid::xid
  LEFT JOIN pg_prepared_xacts p ON p.transaction = unfinished.xid::xid
 WHERE unfinished.xid <= %(xid)s::text::xid8
 ORDER BY unfinished.xid::text::bigint
