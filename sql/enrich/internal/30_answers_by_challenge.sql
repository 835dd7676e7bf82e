-- name: 30_answers_by_challenge
-- Pix's reports look at all answers to one challenge.
-- needs: public.answers

CREATE INDEX CONCURRENTLY IF NOT EXISTS "answers_challengeId" ON public.answers ("challengeId");
