# Two commands matter on a fresh clone: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test quick offline check slow smoke-oldest bench torture lab-base docs docs-site clean

demo: $(INSTALLED)
	$(BIN)/lorastudy demo

# Two processes with one thread each: the models of the tests are too small for two threads to help. A file stays in one
# process, so that no set-up runs twice, and long files come first. Compiled files are kept even where a shell forbids it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

quick: $(INSTALLED)
	$(PYTEST) -m "not slow and not long" tests/unit

# The same where there is no network but this machine's own loopback, which Ray's and the hub's tests use.
offline: $(INSTALLED)
	unshare --map-root-user --net sh -c "ip link set lo up && $(MAKE) test"

# The full grids that `make test` takes representatives of.
slow: $(INSTALLED)
	$(PYTEST) -m slow

# Representatives of the tests, and the demo, on the oldest versions that are tested, in .venv-oldest. It needs a network
# the first time (3 GB), any Python from 3.11 on, and no .venv.
smoke-oldest:
	$(PYTHON) -m benchmarks.smoke_oldest

# Faults injected into running studies, minutes of them; HOURS=3 goes on with further seeds, ONLY=disk takes one row.
torture: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/run.py $(if $(HOURS),--hours $(HOURS)) $(if $(ONLY),--only $(ONLY))

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m lorastudy.suite.schema --check docs/suite-file.md
	$(BIN)/python docs/generate.py --check

docs: $(INSTALLED)
	$(BIN)/python -m lorastudy.suite.schema --write docs/suite-file.md
	$(BIN)/python docs/generate.py

# The documents as a site, in build/site, with tools of its own in .venv-docs. A link that leads nowhere is an error.
docs-site:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements-site.txt
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

# Measures speed and growth on this machine, and brings the tables up to date. With
#     make bench MODEL=<folder of a causal LM> DATA=<Alpaca rows> BASELINE=<script>
# also the rows on a model of your own, against a sequential baseline of your own; OPTIONS goes to the program.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) \
		$(if $(BASELINE),--baseline $(BASELINE)) $(OPTIONS)
	$(BIN)/python docs/generate.py

# Trains the lab's base model again from its recipe (about a minute on two cores).
lab-base: $(INSTALLED)
	$(BIN)/python -m lorastudy.lab.recipe

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-docs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
