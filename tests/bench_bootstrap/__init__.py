"""``make bench-bootstrap``: how long it takes until a target holds all rows and indexes, by every way that there is."""
