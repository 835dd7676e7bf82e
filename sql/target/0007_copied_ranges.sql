-- name: 0007_copied_ranges
-- What a COMMIT without an answer is asked after by. A transaction id cannot be asked: after a crash the server may give
-- the id of a transaction of which it kept nothing to another one, which then is the one that committed.

CREATE TABLE cdc.copied_range (
    token uuid PRIMARY KEY,
    pipeline text NOT NULL,
    fence bigint NOT NULL
);
COMMENT ON TABLE cdc.copied_range IS 'The last range of rows that each job of a load has written, so that its COMMIT can be asked after';
COMMENT ON COLUMN cdc.copied_range.token IS 'Chosen at random for one transaction, which writes it together with its rows';
COMMENT ON COLUMN cdc.copied_range.pipeline IS 'The row of cdc.target that is loaded';
COMMENT ON COLUMN cdc.copied_range.fence IS 'Its fence at that time: who has an older one writes no more';
