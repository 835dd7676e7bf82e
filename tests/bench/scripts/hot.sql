-- One transaction of the workload "hot": a hundred of the thousand counters.
\set which random(0, 9)
UPDATE counters SET hits = hits + 1, total = total + 1.25, "updatedAt" = now() WHERE id % 10 = :which;
