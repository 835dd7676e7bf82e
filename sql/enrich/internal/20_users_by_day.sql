-- name: 20_users_by_day
-- Pix's reports count who has registered on each day, and write the day like this.
-- needs: public.users

CREATE INDEX CONCURRENTLY IF NOT EXISTS "users_createdAt_day"
    ON public.users (cast("createdAt" AT TIME ZONE 'UTC+1' AS date) DESC);
