"""Measurements against PostgreSQL's own subscription."""
