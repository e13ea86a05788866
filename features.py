"""Encode tiles into feature files: `python features.py encoder=uni2_h slides=DIR_OR_FILE_OR_GLOB_OR_CSV output=…`."""

from panda.app.commands import run_job

if __name__ == "__main__":
    run_job("features")
