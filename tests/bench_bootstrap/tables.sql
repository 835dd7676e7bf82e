-- Six tables like those of Pix: one large, one with large values, thirteen indexes in all. Columns need no default, except
-- where a sequence belongs to the table.
CREATE TABLE answers (
    id bigserial PRIMARY KEY,
    value text,
    result varchar(255),
    "assessmentId" integer,
    "challengeId" varchar(255) NOT NULL,
    "createdAt" timestamptz NOT NULL,
    "updatedAt" timestamptz NOT NULL,
    timeout integer,
    "resultDetails" text,
    "timeSpent" integer,
    "isFocusedOut" boolean NOT NULL
);
CREATE TABLE "knowledge-elements" (
    id bigserial PRIMARY KEY,
    source varchar(255),
    status varchar(255),
    "createdAt" timestamptz NOT NULL,
    "answerId" bigint,
    "assessmentId" integer,
    "skillId" varchar(255),
    "earnedPix" real NOT NULL,
    "userId" integer,
    "competenceId" varchar(255)
);
CREATE TABLE "knowledge-element-snapshots" (
    id serial PRIMARY KEY,
    "campaignParticipationId" integer NOT NULL,
    "snappedAt" timestamptz NOT NULL,
    snapshot jsonb NOT NULL
);
CREATE TABLE assessments (
    id serial PRIMARY KEY,
    "courseId" varchar(255),
    "createdAt" timestamptz NOT NULL,
    "updatedAt" timestamptz NOT NULL,
    "userId" integer,
    type varchar(255),
    state varchar(255),
    "competenceId" varchar(255),
    "isImproving" boolean,
    "campaignParticipationId" integer
);
CREATE TABLE users (
    id serial PRIMARY KEY,
    "firstName" varchar(255) NOT NULL,
    "lastName" varchar(255) NOT NULL,
    email varchar(255),
    "createdAt" timestamptz NOT NULL,
    "updatedAt" timestamptz NOT NULL,
    cgu boolean,
    "pixOrgaTermsOfServiceAccepted" boolean,
    lang varchar(255) NOT NULL
);
CREATE TABLE "campaign-participations" (
    id serial PRIMARY KEY,
    "campaignId" integer,
    "createdAt" timestamptz NOT NULL,
    "userId" integer,
    status text NOT NULL,
    "masteryRate" numeric(5, 2),
    "validatedSkillsCount" integer
);
