-- A wide table whose rows each hold 8 kB out of line, with the same content on every server.
CREATE TABLE documents (
    id integer PRIMARY KEY,
    title varchar(255) NOT NULL,
    summary text,
    author integer,
    language varchar(8),
    state varchar(32) NOT NULL,
    version integer NOT NULL DEFAULT 1,
    views bigint NOT NULL DEFAULT 0,
    "isPublic" boolean NOT NULL DEFAULT false,
    "createdAt" timestamptz NOT NULL,
    "updatedAt" timestamptz NOT NULL,
    "reviewedAt" timestamptz,
    notes text,
    body text NOT NULL
);
-- Text of ours would compress to nothing and stay in the row.
ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL;
INSERT INTO documents (id, title, summary, author, language, state, "createdAt", "updatedAt", body)
SELECT n, 'the document ' || n, repeat('what it is about, ', 10), n % 500, 'fr', 'draft', timestamptz '2026-05-01 08:00+00',
       timestamptz '2026-05-01 08:00+00', repeat(md5(n::text), 256)
FROM generate_series(1, 5000) AS n;
