-- name: rows
-- The first rows of the demo's source: some 24,000, made up here.

INSERT INTO organizations (name, type, "externalId", features)
SELECT 'Organization ' || n, (ARRAY['SCO', 'SUP', 'PRO'])[1 + n % 3]::organization_type, nullif('E' || n % 7, 'E0'),
       CASE WHEN n % 2 = 0 THEN ARRAY['PLACES', 'with "quotes", and \ commas'] ELSE '{}' END
  FROM generate_series(1, 40) n;
UPDATE organizations SET "parentOrganizationId" = 1 + id % 5 WHERE id > 5 AND id % 3 = 0;

INSERT INTO users ("firstName", "lastName", email, lang)
SELECT 'Zoé ' || n, 'L''Œuvre-' || n, 'User.' || n || '@example.net', CASE WHEN n % 10 = 0 THEN 'en' ELSE 'fr' END
  FROM generate_series(1, 2000) n;

INSERT INTO campaigns (name, code, "organizationId", "creatorId", "group", "values", "time", "date")
SELECT 'Campaign ' || n, 'CODE' || lpad(n::text, 5, '0'), 1 + n % 40, 1 + n % 2000, nullif('group ' || n % 4, 'group 0'),
       CASE WHEN n % 3 > 0 THEN jsonb_build_object('threshold', n / 100.0, 'none', NULL) END,
       make_time(n % 24, n % 60, n / 7.0), date '2020-02-29' + n
  FROM generate_series(1, 150) n;

INSERT INTO "campaign-participations" ("campaignId", "userId", status, "masteryRate", "sharedAt")
SELECT 1 + n % 150, n, CASE WHEN n % 2 = 0 THEN 'SHARED' ELSE 'STARTED' END::"campaign-participation-status",
       CASE WHEN n % 2 = 0 THEN (n % 101) / 100.0 END, CASE WHEN n % 2 = 0 THEN now() END
  FROM generate_series(1, 2000) n;

-- Of random text, so that compression leaves them too large for their row.
INSERT INTO "knowledge-element-snapshots" ("campaignParticipationId", snapshot)
SELECT n, (SELECT jsonb_agg(jsonb_build_object('skillId', 'rec' || md5((n * k)::text), 'earnedPix', k / 8.0))
             FROM generate_series(1, 100) k)
  FROM generate_series(1, 200) n;

INSERT INTO answers (value, result, "challengeId", "assessmentId", timeout, "timeSpent")
SELECT CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE E'line\n\tvalue ' || n END, CASE WHEN n % 4 = 0 THEN 'ko' ELSE 'ok' END,
       'rec' || n % 300, n / 20, nullif(n % 60, 0), n / 3.0
  FROM generate_series(1, 15000) n;

INSERT INTO "passage-events" (type, "passageId", data)
SELECT 'PASSAGE_STARTED', n, jsonb_build_object('sequence', n) FROM generate_series(1, 1000) n;

INSERT INTO "pole-emploi-sendings" ("campaignParticipationId", "isSuccessful", "responseCode", payload)
SELECT n, n % 9 > 0, CASE WHEN n % 9 > 0 THEN 200 END,
       CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN 'null' ELSE '{"b" :  1, "a": [ ' || n || ' ], "a": "twice"}' END::json
  FROM generate_series(1, 300) n;

INSERT INTO sessions (address, date, time, duration, coordinates, signature, "accessCode", "invigilatorPassword")
SELECT 'Room ' || n, date '2026-01-01' + n, make_time(8 + n % 10, 0, 0), make_interval(hours => n, secs => n / 7.0),
       ARRAY[n / 3.0, 'NaN', 'Infinity'], decode(md5(n::text), 'hex'), 'CODE' || n, 'SECRET' || n
  FROM generate_series(1, 60) n;

INSERT INTO campaign_skills SELECT 1 + n % 150, 'skill' || n FROM generate_series(1, 900) n;
INSERT INTO "organization-places" SELECT n, 1000 FROM generate_series(1, 40) n;
INSERT INTO "center-places" SELECT n, 1000 FROM generate_series(1, 10) n;
INSERT INTO "organization-imports" SELECT n, 'UPLOADED', ARRAY['é', NULL, ''] FROM generate_series(1, 20) n;
INSERT INTO "certification-subscriptions" SELECT n, 'CORE' FROM generate_series(1, 200) n;
INSERT INTO fct_structures SELECT 'UAI' || n % 100, nullif('structure ' || n % 50, 'structure 0'), (n % 20) * 1.10
  FROM generate_series(1, 200) n;
INSERT INTO "certification-courses-last-assessment-results" SELECT n, n * 10 FROM generate_series(1, 200) n;
INSERT INTO learningcontent.skills
SELECT 'skill' || n, '@skill' || n, n / 1000.0, ARRAY['tuto' || n, NULL], jsonb_build_object('fr', 'Indice ' || n), 1
  FROM generate_series(1, 400) n;
INSERT INTO knex_migrations (name) SELECT 'migration ' || n FROM generate_series(1, 50) n;
INSERT INTO pgboss.job (state, data) SELECT 'created', jsonb_build_object('n', n) FROM generate_series(1, 100) n;
ANALYZE;
