"""Tests against real PostgreSQL servers; see conftest.py for the fixtures."""
