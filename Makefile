# The two commands are `make demo` and `make test`. Every other target is here too; `make` alone
# lists them.
.PHONY: help setup setup-tests demo up test lint check-long check-real bench plugin lock clean
venv := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

setup: ## install what everything below needs (each target does it by itself)
	@scripts/setup

demo: setup ## build an example in a VM, cold and then warm, and leave nothing behind
	@$(venv)/python -m mayfly.demo

up: setup ## start the stack and leave it running (`make clean` or `.venv/bin/mayfly down`)
	@$(venv)/mayfly up --detach

test: setup setup-tests lint ## check style, types and imports, then run the tests
	@$(venv)/pytest

setup-tests:
	@scripts/setup-tests

lint: setup ## check style, types and imports only
	@$(venv)/ruff check .
	@$(venv)/ruff format --check --quiet .
	@$(venv)/mypy
	@$(venv)/lint-imports

check-long: setup setup-tests ## run the tests that `make test` has no time for
	@$(venv)/pytest -m 'long and not real' --timeout 3600

check-real: setup ## run the tests that need zot, woodpecker-cli, nsc and surreal on PATH
	@scripts/require zot woodpecker-cli nsc surreal
	@$(venv)/pytest -m real

bench: setup ## measure (all, or ROWS="lease sizes"), and write docs/benchmarks.md
	@$(venv)/python -m bench $(ROWS)

plugin: setup ## build the Woodpecker plugin's image on the running farm, and push it there
	@scripts/plugin-image

lock: setup ## write the Python lock files again, with the newest versions
	@scripts/lock

clean: ## stop everything and remove what Mayfly made (Debian packages stay)
	@scripts/clean
