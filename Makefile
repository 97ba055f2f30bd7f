# Moongate: every target does its own set-up; nothing but Python 3.11 is needed for `run` and `test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8000

.DEFAULT_GOAL := help
.PHONY: help run test check format base-model bench bench-methods migrate clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run ## start the studio on http://127.0.0.1:8000 (PORT and MOONGATE_DATA_DIR are respected)
	@PORT=$(PORT) exec $(BIN)/python -m backend

test: $(VENV)/.dev ## all tests, with their own PostgreSQL, Redis-compatible server and browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev ## format, lint, strict types, import contracts, file ceiling
	$(BIN)/ruff format --check --no-cache .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_docs.py

format: $(VENV)/.dev ## put every file into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migrate: $(VENV)/.run ## bring the database of MOONGATE_DATABASE_URL (or the data directory) to the newest schema
	$(BIN)/python -m alembic upgrade head

base-model: $(VENV)/.dev ## rebuild the shipped base model from nothing (hours on a CPU; needs Node for the icon packages)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[base-model]'
	mkdir -p build/icons && cd build/icons && npm install --no-save --no-audit --no-fund \
	  @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \
	  @iconify-json/twemoji @iconify-json/emojione @iconify-json/openmoji @iconify-json/fxemoji \
	  @iconify-json/streamline-emojis @iconify-json/icon-park @iconify-json/fluent-emoji-high-contrast \
	  @iconify-json/mdi @iconify-json/ph @iconify-json/tabler @iconify-json/fa6-solid \
	  @iconify-json/game-icons @iconify-json/lucide
	$(BIN)/python -m worker.ml.toyworld.train --work build/toyworld --icons build/icons --out worker/base_models/toyworld

bench: $(VENV)/.dev ## every benchmark; results go to benchmarks/results
	$(BIN)/python -m benchmarks.run

bench-methods: $(VENV)/.dev ## the table of methods (resumes; ONLY=stark,lora limits it, so that several can share it)
	$(BIN)/python -m benchmarks.run methods $(if $(ONLY),--only $(ONLY))

clean: ## remove what was built (never the data directory)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
