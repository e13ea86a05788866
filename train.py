"""Train and evaluate: `python train.py [task=segmentation|grading] [model=…] [loss=…] [data=…] [key=value …]`."""

from panda.app.commands import run_job

if __name__ == "__main__":
    run_job("train")
