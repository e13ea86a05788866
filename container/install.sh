#!/bin/sh
# What both images run: install the package with the versions of requirements.lock, without the tools of developers.
# `sh container/install.sh --dry-run` says what it would install into the Python that is first on the path.
set -eu
cd "$(dirname "$0")/.."
python -m pip install --quiet --no-cache-dir --disable-pip-version-check uv
python -m uv pip install --no-cache --python "$(command -v python)" --constraint requirements.lock "$@" ".[mil,cluster]"
