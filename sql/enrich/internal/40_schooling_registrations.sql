-- name: 40_schooling_registrations
-- The name that organization-learners had, for reports that still use it.
-- needs: public.organization-learners

CREATE OR REPLACE VIEW public."schooling-registrations" AS SELECT * FROM public."organization-learners";
