-- One transaction of the workload "deletes": the oldest thousand answers.
SELECT min(id) AS oldest FROM answers \gset
DELETE FROM answers WHERE id < :oldest + 1000;
