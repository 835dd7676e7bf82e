"""Tests of what the wheel carries."""
