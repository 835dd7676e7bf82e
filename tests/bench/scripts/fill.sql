-- Answers that are there before anything is measured, with the same content on every server. :rows is a number.
INSERT INTO answers (value, result, "assessmentId", "challengeId", "createdAt", "updatedAt", "timeSpent")
SELECT 'an answer of some words, ' || n, 'ok', n * 37 % 10000, 'rec' || md5((n % 800)::text),
       timestamptz '2026-05-01 08:00+00', timestamptz '2026-05-01 08:00+00', n % 600
FROM generate_series(1, :rows) AS n;
