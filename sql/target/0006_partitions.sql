-- name: 0006_partitions
-- Which partitions of a partitioned table of the source a table here holds. The source streams them one by one and says
-- nothing when one is attached or detached, so what is held is remembered and compared. Never a row value.

ALTER TABLE cdc.target_table ADD COLUMN partitions jsonb;
COMMENT ON COLUMN cdc.target_table.partitions IS 'For a partitioned table of the source: its leaf partitions whose rows are here, by their oid there, each with schema, name, the mark of its ATTACH, and its bound where a condition here can tell its rows; NULL for any other table';

ALTER TABLE cdc.resync
    ADD COLUMN by_itself boolean NOT NULL DEFAULT false,
    ADD COLUMN partitions_only boolean NOT NULL DEFAULT false,
    ADD COLUMN within text;
COMMENT ON COLUMN cdc.resync.by_itself IS 'Asked for by the worker, because the partitions of the table are not what they were: where it fails the table is stopped';
COMMENT ON COLUMN cdc.resync.partitions_only IS 'Only what partitions hold that were attached or detached has to be read, where that can be told';
COMMENT ON COLUMN cdc.resync.within IS 'The condition for the rows that are read, in the source''s names of the columns; NULL: all of them';
