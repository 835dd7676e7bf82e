"""Which columns and rows reach which target; pure functions."""
