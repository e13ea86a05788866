"""Map slides with a checkpoint: `python infer.py checkpoint=… slides=DIR_OR_FILE_OR_GLOB_OR_CSV output=out/`."""

from panda.app.commands import run_job

if __name__ == "__main__":
    run_job("infer")
