-- name: tables
-- Every table of users, or those named (schema.table), with its columns in the order and choice of pgoutput: neither
-- dropped nor generated ones; those come beside, each with its place among all and its expression. The identity index is
-- the one that PostgreSQL itself would use: live, valid, unique, immediate and not partial; and without generated columns,
-- which are not sent. Temporary tables are nobody else's. ancestors are the tables that one is a partition of.
WITH RECURSIVE chosen AS (
    SELECT c.*, n.nspname
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p')
       AND c.relpersistence <> 't'
       AND n.nspname <> ALL (ARRAY['pg_catalog', 'pg_toast', 'information_schema', 'cdc'])
       AND (%(names)s::text[] IS NULL OR n.nspname || '.' || c.relname = ANY (%(names)s::text[]))
), keys AS (
    SELECT i.indrelid, ic.relname::text AS name, i.indisprimary AS is_primary, i.indisreplident AS is_chosen,
           (i.indkey::int2[])[0:i.indnkeyatts - 1] AS attnums
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
     WHERE i.indrelid IN (SELECT oid FROM chosen)
       AND i.indislive AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                          AND a.attgenerated <> '')
), candidates AS (
    SELECT k.indrelid, array_agg(k.name ORDER BY k.name) AS names
      FROM keys k
     WHERE NOT EXISTS (SELECT FROM unnest(k.attnums) AS u (attnum)
                        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                           WHERE a.attrelid = k.indrelid AND a.attnum = u.attnum AND a.attnotnull))
     GROUP BY k.indrelid
), primary_keys AS (
    SELECT o.conrelid, o.conname::text AS name,
           ARRAY(SELECT a.attname::text
                   FROM unnest(o.conkey) WITH ORDINALITY AS u (attnum, place)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = u.attnum
                  ORDER BY u.place) AS columns
      FROM pg_catalog.pg_constraint o
     WHERE o.contype = 'p' AND o.conrelid IN (SELECT oid FROM chosen)
), ancestors (relid, parent, depth) AS (
    SELECT c.oid, i.inhparent, 1
      FROM chosen c
      JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND NOT i.inhdetachpending
     WHERE c.relispartition
    UNION ALL
    SELECT a.relid, i.inhparent, a.depth + 1
      FROM ancestors a
      JOIN pg_catalog.pg_class p ON p.oid = a.parent AND p.relispartition
      JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.parent AND NOT i.inhdetachpending
)
SELECT c.oid::bigint, c.nspname::text, c.relname::text, c.relreplident::text,
       (SELECT coalesce(json_agg(json_build_array(
                   a.attname, a.atttypid::bigint, a.atttypmod, a.attnotnull,
                   c.relreplident = 'f' OR coalesce(a.attnum = ANY (identity.attnums), false),
                   (SELECT json_build_array(n.nspname, to_jsonb(o))
                      FROM pg_catalog.pg_collation o
                      JOIN pg_catalog.pg_namespace n ON n.oid = o.collnamespace
                      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                     WHERE o.oid = a.attcollation AND o.oid <> t.typcollation)) ORDER BY a.attnum), '[]')
          FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = '' AND NOT a.attisdropped) AS columns,
       (SELECT coalesce(json_agg(json_build_array(
                   a.attname, a.atttypid::bigint, a.atttypmod, a.attnotnull, a.attgenerated, a.place,
                   pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum), '[]')
          FROM (SELECT b.*, row_number() OVER (ORDER BY b.attnum) - 1 AS place
                  FROM pg_catalog.pg_attribute b
                 WHERE b.attrelid = c.oid AND b.attnum > 0 AND NOT b.attisdropped) AS a
          LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attgenerated <> '') AS generated,
       coalesce(pk.columns, '{}') AS primary_key,
       pk.name AS primary_key_name,
       identity.name AS identity_index,
       coalesce(candidates.names, '{}') AS candidate_indexes,
       c.relkind::text, c.relpersistence::text,
       coalesce(pg_table_size(c.oid), 0)::bigint AS bytes,
       coalesce(pg_relation_size(c.oid), 0)::bigint / current_setting('block_size')::bigint AS pages,
       coalesce(has_schema_privilege(c.relnamespace, 'USAGE')
                AND has_table_privilege(c.oid, 'SELECT'), false) AS is_readable,
       row_security_active(c.oid) AS hides_rows,
       pg_get_userbyid(c.relowner)::text AS owner,
       pg_has_role(c.relowner, 'USAGE') AS is_owned,
       c.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000
           AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped) AS lacks_generated,
       (SELECT coalesce(json_object_agg(a.attname, a.attnum ORDER BY a.attnum), '{}')
          FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS numbers,
       ARRAY(SELECT n.nspname || '.' || p.relname
               FROM ancestors a
               JOIN pg_catalog.pg_class p ON p.oid = a.parent
               JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
              WHERE a.relid = c.oid
              ORDER BY a.depth) AS ancestors
  FROM chosen c
  LEFT JOIN keys identity
    ON identity.indrelid = c.oid
   AND ((c.relreplident = 'd' AND identity.is_primary) OR (c.relreplident = 'i' AND identity.is_chosen))
  LEFT JOIN candidates ON candidates.indrelid = c.oid
  LEFT JOIN primary_keys pk ON pk.conrelid = c.oid
 ORDER BY c.nspname, c.relname
