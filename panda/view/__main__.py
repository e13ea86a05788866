"""Run `python -m panda.view FOLDER`, which is `panda view FOLDER`."""

import sys

from panda.view.command import main

if __name__ == "__main__":
    sys.exit(main())
