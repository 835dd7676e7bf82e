-- name: register
-- Make the row of a pipeline's target where it is missing; return the target's name that the row carries.
WITH made AS (
    INSERT INTO cdc.target (pipeline, target, only_tables) VALUES ($1, $2, $3) ON CONFLICT (pipeline) DO NOTHING RETURNING target
)
SELECT target FROM made UNION ALL SELECT t.target FROM cdc.target t WHERE t.pipeline = $1
