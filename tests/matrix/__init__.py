"""The tests against real servers, on every supported version of PostgreSQL: `python -m tests.matrix`."""
