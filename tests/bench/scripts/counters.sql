-- A thousand rows that everything updates, with the same content on every server; room on their pages, as one would set it.
CREATE TABLE counters (
    id integer PRIMARY KEY,
    name varchar(64) NOT NULL,
    hits bigint NOT NULL,
    total numeric(20, 2) NOT NULL,
    "updatedAt" timestamptz NOT NULL
) WITH (fillfactor = 40);
INSERT INTO counters SELECT n, 'counter ' || n, 0, 0, timestamptz '2026-05-01 08:00+00' FROM generate_series(1, 1000) AS n;
