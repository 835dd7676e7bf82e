-- One transaction of the workload "single": one answer.
INSERT INTO answers (value, result, "assessmentId", "challengeId", "timeSpent")
VALUES ('an answer of some words', 'ok', 37, 'recAbCdEfGh', 42);
