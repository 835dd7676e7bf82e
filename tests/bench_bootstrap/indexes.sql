-- Seven, besides the primary keys of six tables.
CREATE INDEX "answers_assessmentid_index" ON answers ("assessmentId");
CREATE INDEX "knowledge_elements_userid_index" ON "knowledge-elements" ("userId");
CREATE UNIQUE INDEX "snapshots_campaignparticipationid_unique" ON "knowledge-element-snapshots" ("campaignParticipationId");
CREATE INDEX "assessments_userid_index" ON assessments ("userId");
CREATE UNIQUE INDEX "users_email_unique" ON users (email);
CREATE INDEX "campaign_participations_campaignid_index" ON "campaign-participations" ("campaignId");
CREATE INDEX "campaign_participations_userid_index" ON "campaign-participations" ("userId");
