-- One transaction of the workload "toast": ten documents change, and one of twenty gets a new body.
\set first random(1, 4991)
\set renewed random(0, 19)
UPDATE documents
SET state = 'review', version = version + 1, views = views + :renewed, "updatedAt" = now(),
    body = CASE WHEN id % 20 = :renewed THEN repeat(md5((version * id)::text), 256) ELSE body END
WHERE id BETWEEN :first AND :first + 9;
