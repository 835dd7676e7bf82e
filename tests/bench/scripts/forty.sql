-- The table :number of forty, with the same thousand rows on every server.
CREATE TABLE entries_:number (
    id bigserial PRIMARY KEY,
    kind varchar(32) NOT NULL,
    owner integer,
    amount integer NOT NULL,
    note text,
    "createdAt" timestamptz NOT NULL,
    "updatedAt" timestamptz NOT NULL
);
INSERT INTO entries_:number (kind, owner, amount, note, "createdAt", "updatedAt")
SELECT 'kind' || n % 7, n % 100, n, 'a note of some words', timestamptz '2026-05-01 08:00+00', timestamptz '2026-05-01 08:00+00'
FROM generate_series(1, 1000) AS n;
