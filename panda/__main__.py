"""Run `python -m panda COMMAND …`, which is `panda COMMAND …`."""

from panda.app.commands import main

if __name__ == "__main__":
    main()
