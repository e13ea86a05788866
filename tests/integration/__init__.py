"""End-to-end runs of the entry points."""
