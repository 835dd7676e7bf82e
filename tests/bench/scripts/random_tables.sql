-- One transaction of the workload "tables": an insert into one of forty tables, and an update in another.
\set one random(1, 40)
\set other random(1, 40)
\set entry random(1, 1000)
BEGIN;
INSERT INTO entries_:one (kind, owner, amount, note, "createdAt", "updatedAt")
VALUES ('kind', :entry, :other, 'a note of some words', now(), now());
UPDATE entries_:other SET amount = amount + 1, "updatedAt" = now() WHERE id = :entry;
COMMIT;
