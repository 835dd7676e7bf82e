"""What takes too long for the suite: measured, and judged, when somebody asks for it."""
