"""What keeps a pipeline running: lanes, supervision, retries, health."""
