"""Tests of rooms against real databases."""
