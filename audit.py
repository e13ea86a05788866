"""Inspect a data set: `python audit.py data=panda data.root=… [audit.slides=false] [output=audit]`."""

from panda.app.commands import run_job

if __name__ == "__main__":
    run_job("audit")
