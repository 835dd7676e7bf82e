"""Tests that cut connections and kill processes."""
