-- The two tables of Pix that grow all day, as they were in May 2026, without their foreign keys.
CREATE TABLE answers (
    id bigserial PRIMARY KEY,
    value text,
    result varchar(255),
    "assessmentId" integer,
    "challengeId" varchar(255) NOT NULL,
    "createdAt" timestamptz NOT NULL DEFAULT now(),
    "updatedAt" timestamptz NOT NULL DEFAULT now(),
    timeout integer,
    "resultDetails" text,
    "timeSpent" integer,
    "isFocusedOut" boolean NOT NULL DEFAULT false
);
CREATE INDEX ON answers ("assessmentId");

CREATE TABLE assessments (
    id serial PRIMARY KEY,
    "courseId" varchar(255),
    "createdAt" timestamptz NOT NULL DEFAULT now(),
    "updatedAt" timestamptz NOT NULL DEFAULT now(),
    "userId" integer,
    type varchar(255),
    state varchar(255),
    "competenceId" varchar(255),
    "isImproving" boolean DEFAULT false,
    "campaignParticipationId" integer,
    "certificationCourseId" integer,
    "lastQuestionDate" timestamptz,
    "lastChallengeId" varchar(50),
    "lastQuestionState" varchar(50),
    method text
);
CREATE INDEX ON assessments ("userId");

-- The same rows on every server: nothing is copied before a measurement.
INSERT INTO assessments ("createdAt", "updatedAt", "userId", type, state, "competenceId")
SELECT timestamptz '2026-05-01 08:00+00', timestamptz '2026-05-01 08:00+00', n % 2000, 'COMPETENCE_EVALUATION',
       'started', 'competence' || n % 16
FROM generate_series(1, 10000) AS n;
