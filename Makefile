# setup, demo, test: one command each in a fresh clone. All of them work in .venv, which is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := examples/library-docs
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test test-all lint

setup: .venv/done

.venv/done: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,test]'
	touch $@

demo: .venv/done
	$(BIN)/python $(DEMO)/build_corpus.py
	$(BIN)/miner run $(DEMO)/job.yaml
	$(BIN)/python $(DEMO)/measure.py

lint: .venv/done
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

# A core for each of the two workers of pytest: more threads would wait for each other.
test: lint
	$(BIN)/python $(DEMO)/build_corpus.py
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=15

# Everything, the slow and heavy checks too: torch, FlagEmbedding and sentence-transformers come along, and the tests
# marked live run where OPENAI_BASE_URL names a server.
test-all: lint .venv/interop
	$(BIN)/python $(DEMO)/build_corpus.py
	$(BIN)/pytest -m ''

.venv/interop: .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,test,interop]'
	touch $@
