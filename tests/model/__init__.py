"""Random transactions and random faults, compared with the source."""
