"""Measure speed, memory and correctness, beside other libraries if there are any. See README.md."""
