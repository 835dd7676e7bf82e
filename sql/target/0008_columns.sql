-- name: 0008_columns
-- Which columns of the source the columns of a table here were loaded from. The stream names columns, and a name can come
-- to mean another column of the same table (names that are swapped, a column that is dropped and added again), of which
-- the rows that are here know nothing. A column's number never changes, and is never used again. Never a row value.

ALTER TABLE cdc.target_table ADD COLUMN source_columns jsonb;
COMMENT ON COLUMN cdc.target_table.source_columns IS 'Which column of the source each column here holds: "oid" is that of the table here; "columns" are numbers of columns (pg_attribute.attnum), here and at the source; "mixed" says why rows here hold values of several columns under one name, so that only reading all of them again helps; NULL: not known yet';
