# The verbs of Gleaner. Needs Debian 12 (or the like) with bash, git, make and Python 3.11; everything else is set up here.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
BIN := .venv/bin
CODE := flows tasks detectron_ext
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# The environment is set up again when one of these files, or the choice of Detectron2, changes.
LOCK ?= requirements-dev.lock
SETUP_FILES := $(LOCK) pyproject.toml $(wildcard infra/detectron2/*.py) infra/detectron2/source.txt
STACK ?= .stack
PORTS ?=
STAMP := .venv/.stamp-$(shell { cat $(SETUP_FILES); echo "$${GLEANER_DETECTRON2:-}"; } | sha256sum | cut -c1-16)

.PHONY: help
help: ## Show the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Set up .venv from requirements-dev.lock, or LOCK=requirements.lock (7 GB, some minutes; later calls take no time)
	@echo "[setup] .venv is ready"

.PHONY: demo
demo: $(STAMP) ## Run a whole campaign on the images that come along
	@$(BIN)/gleaner demo

# Each worker its share of the cores: where two trainings each started a thread per core, both took five times as long.
# Where a worker dies, the run ends and says in which test: with a new worker in its place, it waited for ever.
define PYTEST
cores=$$(nproc)
workers=$$((cores < 4 ? cores : 4))
export OMP_NUM_THREADS=$$((cores / workers))
$(BIN)/python -m pytest --numprocesses $$workers --dist loadfile --no-loadscope-reorder --max-worker-restart 0
endef

.PHONY: test
test: $(STAMP) ## Run every test but those of test-cluster, files side by side
	@$(PYTEST) -m "not cluster"

.PHONY: test-cluster
test-cluster: $(STAMP) ## Run the tests on nodes of a Ray cluster, some of which die (minutes)
	@$(BIN)/python -m pytest -m cluster

.PHONY: test-fast
test-fast: $(STAMP) ## Run the unit tests: no training, no service, no whole round
	@$(PYTEST) -m unit

.PHONY: docs
docs: $(STAMP) ## Build the documentation site into .cache/site, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.PHONY: check
check: format-check lint types imports known-vulnerabilities ## Check format, lint, types, import rules and dependencies

.PHONY: format-check
format-check: $(STAMP)
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(STAMP) ## Format the code and sort its imports
	@$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format .

.PHONY: lint
lint: $(STAMP) ## Lint the code
	@$(BIN)/ruff check .

.PHONY: types
types: $(STAMP) ## Check types
	@$(BIN)/mypy $(CODE) infra

.PHONY: imports
imports: $(STAMP) ## Check who imports whom
	@$(BIN)/lint-imports

.PHONY: known-vulnerabilities
known-vulnerabilities: $(STAMP)
	@$(BIN)/python -m infra.dependency_audit

.PHONY: audit-dependencies
audit-dependencies: $(STAMP) ## Look up the locked packages among known vulnerabilities; fails without the network
	@$(BIN)/python -m infra.dependency_audit --required

.PHONY: sbom
sbom: $(STAMP) ## Write the software bill of materials (CycloneDX) to dist/
	@$(BIN)/python -m infra.sbom

.PHONY: bench
bench: $(STAMP) ## Measure a training step, a night, an import, an evaluation and a selection against their baselines
	@$(BIN)/python -W ignore -m infra.bench.speed
	$(BIN)/python -W ignore -m infra.bench.orchestration
	$(BIN)/python -W ignore -m infra.bench.init
	$(BIN)/python -W ignore -m infra.bench.evaluation

.PHONY: bench-scale
bench-scale: $(STAMP) ## Measure score, weigh, select and handoff on up to a million images
	@$(BIN)/python -W ignore -m infra.bench.scale

.PHONY: setup-services
setup-services: $(STAMP) ## Install what the real services need: PostgreSQL, Chromium (as root), Label Studio
	@if ! command -v chromium >/dev/null || ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
	    if [ "$$(id -u)" != 0 ]; then
	        echo "[setup] PostgreSQL or Chromium is missing: sudo apt-get install chromium postgresql" >&2
	        exit 1
	    fi
	    echo "[setup] installing PostgreSQL and Chromium"
	    apt-get update --quiet=2
	    # Only the programs: no cluster of Debian's own, no service on port 5432.
	    conf=/etc/postgresql-common/createcluster.conf
	    [ -e "$$conf" ] || { mkdir -p "$${conf%/*}"; echo "create_main_cluster = false" > "$$conf"; }
	    DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends chromium postgresql
	fi
	$(BIN)/python -m infra.label_studio.install

# Where: make services-up STACK=/srv/stack. Other ports, kept from then on: make services-up PORTS='prefect=4300 mlflow=5001'.
.PHONY: services-up
services-up: $(STAMP) ## Start PostgreSQL, an S3 server, MLflow and Prefect on loopback
	@$(BIN)/python -m infra.services up --dir '$(STACK)' $(foreach port,$(PORTS),--port $(port))

.PHONY: services-status
services-status: $(STAMP) ## Ask each of these services for some real work
	@$(BIN)/python -m infra.services status --dir '$(STACK)'

.PHONY: services-down
services-down: $(STAMP) ## Stop them; their data stay
	@$(BIN)/python -m infra.services down --dir '$(STACK)'

.PHONY: services-env
services-env: $(STAMP) ## Make the credentials only, for infra/compose.yaml
	@$(BIN)/python -m infra.services env --dir '$(STACK)'

.PHONY: clean
clean: ## Remove caches; .venv and the data of rounds stay
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .cache
	find $(CODE) infra tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One set-up at a time. `.venv/.complete` holds the folder it was made for: where it is missing or differs, a set-up was
# cut off or the checkout moved, so it starts afresh (pip keeps its downloads). pip, setuptools and wheel come first,
# because three requirements exist only as sources.
$(STAMP):
	@mkdir -p .cache
	exec 9>.cache/setup.lock
	flock -n 9 || { echo "[setup] waiting for another set-up of this checkout"; flock 9; }
	[ ! -e $@ ] || exit 0
	say() { echo "[setup] $$*"; }
	python=
	for candidate in $(or $(PYTHON),python3.11 python3); do
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	        python=$$candidate
	        break
	    fi
	done
	if [ -z "$$python" ]; then
	    say "Gleaner needs Python 3.11: apt-get install python3.11 python3.11-venv, or make setup PYTHON=/path/to/python3.11" >&2
	    exit 1
	fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	    say "This Python 3.11 has no venv module: apt-get install python3.11-venv" >&2
	    exit 1
	fi
	if [ "$$(cat .venv/.complete 2>/dev/null)" != "$(CURDIR)" ]; then
	    [ ! -e .venv ] || say "the last set-up was cut off, or the folder moved: starting afresh"
	    rm -rf .venv
	    say "1/4 making .venv with $$("$$python" --version)"
	    "$$python" -m venv .venv
	fi
	rm -f .venv/.complete .venv/.stamp-*
	pip=("$(BIN)/python" -m pip --disable-pip-version-check install --no-deps --no-build-isolation)
	say "2/4 installing $$(grep -c '^[^ #]' $(LOCK)) packages from $(LOCK) (some minutes)"
	awk '/^[^ ]/ {keep = /^(packaging|pip|setuptools|wheel)==/} keep' $(LOCK) > .venv/first.lock
	"$${pip[@]}" --quiet --require-hashes --requirement .venv/first.lock
	"$${pip[@]}" --require-hashes --requirement $(LOCK)
	say "3/4 installing Detectron2"
	$(BIN)/python -m infra.detectron2.install
	say "4/4 installing Gleaner"
	"$${pip[@]}" --quiet --editable .
	echo "$(CURDIR)" > .venv/.complete
	touch $@
