-- The one transaction of the workload "big". :rows is a number.
INSERT INTO answers (value, result, "assessmentId", "challengeId", timeout, "resultDetails", "timeSpent")
SELECT 'an answer of some words, ' || n, CASE n % 3 WHEN 0 THEN 'ko' ELSE 'ok' END, n * 37 % 10000,
       'rec' || md5((n % 800)::text), NULL, CASE n % 5 WHEN 0 THEN 'null' || repeat(E'\n', 2) END, n % 600
FROM generate_series(1, :rows) AS n;
