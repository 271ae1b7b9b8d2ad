# Each target does everything from a fresh machine with Python 3.11 or newer; README.md has the plain commands beside it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: run test site environment

run: environment
	.venv/bin/python -m lightning_vl fit -c experiments/vivit_fact_encoder.yaml

test: environment
	.venv/bin/python -m pytest

# opens without a server or a network: site/index.html
site: environment
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

# .venv/locked is the lock that .venv was made from: nothing is installed while it is the same
environment:
	@cmp -s requirements-lock.txt .venv/locked || { \
	  $(PYTHON) -m venv .venv && \
	  .venv/bin/python -m pip install --require-hashes -r requirements-lock.txt && \
	  cp requirements-lock.txt .venv/locked; }
