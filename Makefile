SHELL := bash
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE :=
# One more than there are processors, as tests wait for servers too; more than 4 need much memory.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
# What costs nothing, where Python has it: 3.12 and later.
COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-browser lint format bench bench-cluster bench-quality fuzz audit screenshots lock clean secrets simulate mutate up down smoke backup restore test-compose

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv from requirements.lock (quick when nothing changed)
	@scripts/setup.sh

demo: setup ## two nights, an approval and a rollback on Airflow and MLflow; DATA=<folder> for your own images
	@$(BIN)/python scripts/demo.py $(if $(DATA),--data "$(DATA)")

test-fast: lint ## set-up, lint, types, the tests that start no server
	$(BIN)/pytest --numprocesses $(WORKERS) -m "not slow" $(ARGS)

test: lint ## set-up, lint, types, all tests; the slowest and what they cover are printed
	COVERAGE_CORE=$(COVERAGE_CORE) $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--durations 30 --cov --cov-report term:skip-covered $(ARGS)

test-browser: setup ## operate it in headless Chromium, on real Airflow and MLflow (part of `make test`)
	$(BIN)/pytest tests/site/browser $(ARGS)

lint: setup ## set-up, ruff, mypy, import contracts, dead code, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry xray_pipeline dags
	$(BIN)/mypy

bench: setup ## measurements; JSON in bench/. FULL=, SMALL=<radiographs by class, as taken and of 224 px>, QUICK=1: small sizes; ROWS=<radiographs of each made history>
	@mkdir -p bench
	$(BIN)/python benchmarks/intake.py $(if $(FULL),--data "$(FULL)") --json bench/intake.json
	$(if $(and $(FULL),$(SMALL)),$(BIN)/python benchmarks/near_duplicates.py --small "$(SMALL)" --data "$(FULL)" --json bench/near_duplicates.json)
	$(BIN)/python benchmarks/gate_simulation.py --json bench/gate.json
	$(BIN)/python benchmarks/prospective.py --hospitals 100 --json bench/prospective.json
	$(BIN)/python benchmarks/engine.py --json bench/engine.json
	$(BIN)/python benchmarks/history.py --json bench/history.json
	$(if $(SMALL),$(BIN)/python benchmarks/night.py --data "$(SMALL)" $(if $(QUICK),--images 200 --new 50 --asked 100) --json bench/night.json)
	$(BIN)/python benchmarks/training.py $(if $(FULL),--data "$(FULL)") $(if $(SMALL),--small "$(SMALL)") \
		--epochs $(if $(QUICK),2 --images 60 --new 60 --factors 1 4 --rows 100000,3 --factors 1 8) --json bench/training.json
	$(BIN)/python benchmarks/drift.py $(if $(SMALL),--data "$(SMALL)") --json bench/drift.json
	$(if $(SMALL),$(BIN)/python benchmarks/suspects.py --data "$(SMALL)" --json bench/suspects.json)
	$(BIN)/python benchmarks/scaling.py --rows $(or $(ROWS),100000 $(if $(QUICK),200000,1000000)) --json bench/scaling.json

bench-cluster: setup ## the intake of many deliveries with one Celery worker and with two
	@mkdir -p bench
	PYTHONPATH=tests/builders:scripts $(BIN)/python benchmarks/cluster.py --json bench/cluster.json

bench-quality: setup ## recipes on unseen patients, under stress, and on unseen sources; DATA=<folder>; an hour or two
	@mkdir -p bench
	$(BIN)/python benchmarks/quality.py --sources --data "$(or $(DATA),$(error bench-quality needs DATA=<folder>))" --json bench/quality.json
	$(BIN)/python benchmarks/threshold.py --data "$(DATA)" --json bench/threshold.json
	$(BIN)/python benchmarks/tried.py --data "$(DATA)" --json bench/tried.json

fuzz: setup ## mutate radiographs for 10 minutes; FUZZ_SECONDS=<n> for longer
	PYTHONPATH=tests/builders $(BIN)/python tests/images/fuzz_radiograph.py --seconds $(or $(FUZZ_SECONDS),600)

simulate: setup ## run simulated sites by their seeds, with faults at every call of store and MLflow; SEEDS=200
	@PYTHONPATH=tests/builders:tests/simulation $(BIN)/python tests/simulation/simulate.py --seeds $(or $(SEEDS),200) $(ARGS)

mutate: setup ## plant faults in copies of the package; after how many simulated seeds each is found
	@PYTHONPATH=tests/builders:tests/simulation $(BIN)/python tests/simulation/mutate.py $(ARGS)

format: setup ## format the code and sort its imports
	$(BIN)/ruff check --quiet --fix-only --select I .
	$(BIN)/ruff format .

audit: setup ## look up every package of requirements.lock in the OSV database of vulnerabilities; needs the network
	@$(BIN)/python scripts/audit.py

screenshots: setup ## take the pictures in docs/ anew, from the browser tests
	$(BIN)/pytest tests/site/browser --screenshots

lock: setup ## pin what pyproject.toml asks for in requirements.lock; ARGS=--upgrade for newer versions
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
		--no-emit-find-links --extra dev pyproject.toml --output-file requirements.lock $(ARGS)

clean: ## remove the demo's files and caches; .venv stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@if [ -e xray-demo/.xray-demo ]; then rm -rf xray-demo; fi

secrets: ## .env with random secrets for the compose stack; an existing value is never changed
	@python3 scripts/make_env.py

up: ## build and start the compose stack, and wait until it is healthy
	docker compose up --detach --build --wait --wait-timeout 600

down: ## stop the compose stack; its volumes stay
	docker compose --profile '*' down

smoke: ## drive a throw-away copy of the compose stack: nights, approval, restarts, backup and restore
	@python3 scripts/smoke.py

backup: ## databases and objects of the compose stack into backups/<time>; TO=<folder>
	@python3 scripts/backup.py backup $(TO)

restore: ## put a backup into empty volumes and start; FROM=<folder>
	@python3 scripts/backup.py restore $(FROM)

test-compose: ## `make smoke` with this machine's engine, or one that can be started here
	@scripts/test-compose.sh
