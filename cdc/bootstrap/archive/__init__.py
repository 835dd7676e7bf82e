"""Archives of ``pg_dump`` in the custom format: what is in one, and the rows of its tables."""
