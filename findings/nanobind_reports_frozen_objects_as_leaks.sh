#!/usr/bin/env bash
# After `gc.freeze()`, libraries built with nanobind report leaks at the end of a program that leaks nothing.
#
# One would guess: `gc.freeze()` only lets the garbage collector pass over what exists, for example over everything that
# was imported. It is safe to call once after slow imports, to make collections shorter, and changes nothing else.
#
# What happens: at its end, Python collects garbage to take modules apart. Frozen objects do not take part. nanobind then
# finds its instances, types and functions alive, and prints a list of leaks to stderr. Triton, which torch brings along
# on Linux, is such a library. The exit status stays 0. After `gc.unfreeze()` at exit nothing is printed.
#
# Consequence: a program that freezes its imports calls `atexit.register(gc.unfreeze)`. A log with "nanobind: leaked" says
# nothing about a leak if something in the process calls `gc.freeze()`.
#
# Versions: triton 3.9.0 with Python 3.11. See the pin below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check triton==3.9.0
cat > "$folder/show.py" <<'PY'
import subprocess
import sys
from importlib.metadata import version

IMPORT = "import atexit, gc, triton._C.libtriton; "
PROGRAMS = {
    "imports only": IMPORT,
    "and gc.freeze()": IMPORT + "gc.freeze()",
    "and gc.unfreeze() at exit": IMPORT + "gc.freeze(); atexit.register(gc.unfreeze)",
}

print("triton", version("triton"), "Python", sys.version.split()[0])
reported = []
for name, program in PROGRAMS.items():
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("nanobind: leaked")]
    reported.append(bool(lines))
    print(f"{name}: exit status {ran.returncode}, {'; '.join(lines) or 'nothing is reported'}")
sys.exit(reported != [False, True, False])
PY
"$folder/venv/bin/python" "$folder/show.py" && echo "as described" || { echo "the behaviour has changed"; exit 1; }
