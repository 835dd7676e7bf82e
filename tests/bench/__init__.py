"""Measurements against PostgreSQL's own subscription: ``make bench``; README.md says what is measured and how."""
