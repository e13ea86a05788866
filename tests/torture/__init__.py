"""Torture: jobs that are killed, starved, fed damaged files or run several times at once.

`python -m tests.torture` runs it, `make torture` for half an hour. docs/reliability.md states what it found.
"""
