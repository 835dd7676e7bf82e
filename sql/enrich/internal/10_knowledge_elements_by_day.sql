-- name: 10_knowledge_elements_by_day
-- Pix's reports count the answers of each day, and write the day like this.
-- needs: public.knowledge-elements

CREATE INDEX CONCURRENTLY IF NOT EXISTS "knowledge-elements_createdAt_day"
    ON public."knowledge-elements" (cast("createdAt" AT TIME ZONE 'UTC+1' AS date) DESC);
