-- One transaction of the workload "backlog": 600 answers come, 300 change, 100 go. Those that change and go are some
-- transactions old: nothing that another transaction of the same batch has made is touched again soon.
SELECT max(id) AS newest FROM answers \gset
BEGIN;
INSERT INTO answers (value, result, "assessmentId", "challengeId", timeout, "resultDetails", "timeSpent")
SELECT 'an answer of some words, ' || n, CASE n % 3 WHEN 0 THEN 'ko' ELSE 'ok' END, n * 37 % 10000,
       'rec' || md5((n % 800)::text), NULL, CASE n % 5 WHEN 0 THEN 'null' || repeat(E'\n', 2) END, n % 600
FROM generate_series(1, 600) AS n;
UPDATE answers SET result = 'aband', "updatedAt" = now() WHERE id > :newest - 30000 AND id <= :newest - 29700;
DELETE FROM answers WHERE id > :newest - 60000 AND id <= :newest - 59900;
COMMIT;
