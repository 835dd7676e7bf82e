"""The only package that writes to a target."""
