"""The initial load of a target, joined to the stream without a gap."""
