"""End-to-end runs through the two doors."""
