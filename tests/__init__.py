"""Tests of the package, one module for each of its modules."""
