PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
NEWEST := .venv-newest
OLDEST_PYTHON ?= $(firstword $(shell for p in python3.10 python3.11 python3.12; do $$p -c "" 2>/dev/null && echo $$p; done; true) $(PYTHON))
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_BENCH := $(VENV)/.installed-bench
METHODS := PYTHONPATH=plugins/cachepolicies-classics/src:plugins/cachepolicies-drafts/src
MODELS := video_dit image_dit photo_unet sound_transformer

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest test-newest lint types types-of-tests coverage mutated mutations stateful changelog docs bench bench-gpu bench-budgets bench-peers bench-peers-short bench-plans bench-depth study train clean

help:
	@echo "make demo   sample the reference video model with and without caching, write demo/report.html"
	@echo "make test   lint, then the test suite"
	@echo "make test-oldest  the suite on the oldest versions that pyproject.toml promises, in $(OLDEST) (gigabytes)"
	@echo "make test-newest  the suite on the newest versions, without pins, in $(NEWEST) (gigabytes)"
	@echo "make lint   ruff check, ruff format --check, mypy --strict, and that imports run one way"
	@echo "make mutated  10 000 damaged profiles and plans: each read or refused, in a second and 200 MB (minutes)"
	@echo "make mutations  80 hand-made faults in the library: each is found by a test (minutes); goes on where it stopped"
	@echo "make stateful  3000 generations in flight at once, each compared with the same alone (minutes)"
	@echo "make coverage  the test suite with the lines and branches that it does not reach"
	@echo "make changelog VERSION=x.y.z  join the fragments of changelog.d into CHANGELOG.md"
	@echo "make docs   build the documentation into site/ (strict)"
	@echo "make bench  what the engine adds to a call, and what is gained of what executed FLOPs promise"
	@echo "make bench-gpu  the same on a GPU, in the shapes of real models (under 8 minutes on a data-centre card)"
	@echo "make bench-budgets  whether budgets are met, and what the default gives; goes on where it stopped"
	@echo "make bench-peers  other caches and ours at equal work; goes on where it stopped"
	@echo "make bench-peers-short  the same on four samples of two models, in minutes, against the committed figures"
	@echo "make bench-depth  plans in step and depth beside plans in steps alone, every twin; goes on where it stopped"
	@echo "make bench-plans  plans on samples that they were not made from, every reference model; goes on where it stopped"
	@echo "make study  every rule with every substitute at equal evaluations, at most an hour at a time; goes on where it stopped"
	@echo "make train  train the reference models again and their twins (hours; replaces the committed weights)"
	@echo "make clean  remove what the other targets wrote; keeps $(VENV) and training/runs"

# What is installed is compiled where it is imported: of most packages, a small part.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
	touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev,docs]'
	touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev,bench]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m cachepolicies.reference.demo --out demo

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-oldest: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -c constraints-oldest.txt -e '.[dev]'
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

test-newest: pyproject.toml
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	$(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 types types-of-tests
	$(BIN)/lint-imports --no-cache

types:
	$(BIN)/mypy

types-of-tests:
	$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests tests

coverage: $(INSTALLED)
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report

mutated: $(INSTALLED)
	$(BIN)/python bench/mutated.py 10000

mutations: $(INSTALLED)
	$(BIN)/python bench/mutations/inject.py

stateful: $(INSTALLED)
	CACHEPOLICIES_GENERATIONS=3000 $(BIN)/python -m pytest tests/test_stateful.py

changelog: $(INSTALLED)
	$(BIN)/towncrier build --version $(VERSION)

docs: $(INSTALLED_DOCS)
	$(BIN)/mkdocs build --strict

bench-gpu: $(INSTALLED)
	$(BIN)/python bench/gpu.py

bench: $(INSTALLED)
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/speedup.py
	$(BIN)/python bench/inplace.py
	$(BIN)/python bench/added.py
	$(METHODS) $(BIN)/python bench/places.py

bench-budgets: $(INSTALLED)
	$(BIN)/python bench/budgets.py
	$(BIN)/python bench/defaults.py
	$(BIN)/python bench/wan.py

bench-plans: $(INSTALLED)
	$(BIN)/python bench/plans.py
	$(BIN)/python bench/targets.py
	$(BIN)/python bench/calibration.py
	$(BIN)/python bench/plans_report.py

bench-depth: $(INSTALLED)
	$(BIN)/python bench/depth.py

bench-peers: $(INSTALLED_BENCH)
	$(METHODS) $(BIN)/python bench/peers/run.py
	$(BIN)/python bench/peers/page.py

bench-peers-short: $(INSTALLED_BENCH)
	$(METHODS) $(BIN)/python bench/peers/repeat.py

study: $(INSTALLED)
	$(BIN)/python bench/study

train: $(INSTALLED)
	$(BIN)/python training/train_classifier.py
	for model in $(MODELS); do for twin in "" --twin; do \
		$(BIN)/python training/train_$$model.py $$twin || exit 1; done; done
	for model in $(MODELS); do for name in $$model $${model}_twin; do \
		$(BIN)/cachepolicies calibrate cachepolicies.reference.workloads:$$name --weights every \
			--out profiles/$$(echo $$name | tr _ -).json || exit 1; done; done
	$(BIN)/python training/evaluate.py
	$(BIN)/python training/pictures.py

clean:
	rm -rf demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests training bench plugins -name __pycache__ -type d -prune -exec rm -rf {} +
