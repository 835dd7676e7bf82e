-- One transaction of the latency measurement: somebody answers a question of an assessment.
\set assessment random(1, 10000)
BEGIN;
INSERT INTO answers (value, result, "assessmentId", "challengeId", "timeSpent")
VALUES ('an answer of some words', 'ok', :assessment, 'recAbCdEfGh', 42);
UPDATE assessments SET "updatedAt" = now(), "lastQuestionDate" = now(), "lastChallengeId" = 'recAbCdEfGh'
WHERE id = :assessment;
COMMIT;
