"""What the source committed: whole transactions of packed rows, and what several of them come to per key."""
