# Everything a user or CI runs, by name. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-short torture check lint lock bench bench-peers

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## set up .venv from the hashed lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed, for example: make install PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: install ## draw a small PANDA, train, grade, map a slide; ends with figures and where the reports are
	rm -rf runs/segmentation/demo runs/grading/demo out/demo
	$(BIN)/python train.py experiment=demo
	$(BIN)/python train.py experiment=demo_grading
	$(BIN)/python infer.py checkpoint=runs/segmentation/demo/checkpoints/best.ckpt \
	  grading_checkpoint=runs/grading/demo/checkpoints/best.ckpt output=out/demo \
	  slides=data/synthetic/train_images/$$(sort -t, -k3n runs/grading/demo/test_slides.csv | tail -n 1 | cut -d, -f1).tiff
	@$(BIN)/python -m panda.report.headline runs/segmentation/demo runs/grading/demo
	@echo "the mapped slide"; echo "  out/demo/report.html"

test: install ## the tests (two cores, no GPU, no network)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# with its own environment, for example: make test-short PYTHON=python3.13 VENV=.venv-3.13
test-short: install ## a short part of the tests: imports, --help, configurations, files, a small training and its maps
	$(BIN)/python -m pytest -p no:cacheprovider tests/test_help.py tests/test_config_check.py tests/test_export.py \
	  tests/integration/test_entry_points.py -k "not integration or run_folder or continues_past"

torture: install ## kill, starve and feed damaged files to every job, for half an hour
	$(BIN)/python -m tests.torture

# with the other libraries where `make bench-peers` has been run, else without them
bench: install ## measure reading, extraction, training, inference, memory … against OpenSlide and others (idle machine)
	$(or $(wildcard bench/.peers/bin/python),$(BIN)/python) -m bench.run

bench-peers: install ## install the other libraries that `make bench` compares with, apart from .venv
	test -x bench/.peers/bin/python || $(BIN)/python -m venv bench/.peers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(bench/.peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(BIN)/uv pip install --quiet --python bench/.peers/bin/python --no-deps -r bench/requirements.txt

lint: install ## ruff, mypy --strict, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## lint and tests, which CI runs before the demo

lock: install ## pin the ranges of pyproject.toml again
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	  --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
