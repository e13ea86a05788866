"""Run the audit from its old place, `python -m panda.data.audit`, for one release."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    print("python -m panda.data.audit has moved: type python audit.py", *sys.argv[1:], file=sys.stderr)
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "audit.py"), run_name="__main__")
