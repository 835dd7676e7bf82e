-- name: column_numbers
-- The names of the columns of tables (oids), each with its number, and those that are computed; and how far the WAL has
-- come. It is asked for within the same statement, so whatever of the catalog is seen here was committed before that.
SELECT c.oid::bigint,
       (SELECT coalesce(json_object_agg(a.attname, a.attnum ORDER BY a.attnum), '{}')
          FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS numbers,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '') AS computed,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn
  FROM pg_catalog.pg_class c
 WHERE c.oid = ANY (%(tables)s::oid[])
