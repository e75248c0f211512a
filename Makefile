SHELL := /bin/bash

# Two stamps: a change of the lock rebuilds the environment, a change of pyproject.toml only
# reinstalls the package. Both lie inside .venv, so a build that was cut short has none.
LOCKED := .venv/.locked
READY := .venv/.ready
# Rules call the command line by its name, whether or not the environment is active.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m

.PHONY: all test verify report docs bench lint env clean help

all: $(READY) ## build the environment if needed, then every result and figure
	$(RUN) snakemake --workflow-profile workflow/profiles/default --cores all all

test: $(READY) ## build the environment if needed, then run the tests
	$(RUN) pytest

# A folder of its own for all that a run writes: tracked results and figures stay.
VERIFY := results/verify

verify: $(READY) ## run the default workflow beside the tracked results, and compare row by row
	$(RUN) snakemake --workflow-profile workflow/profiles/default --cores all all \
	    --config results=$(VERIFY) figures=$(VERIFY)/figures compare=$(VERIFY)/compare.csv
	$(RUN) losskernel.cli workflow comparison verify --tracked results/compare.csv \
	    --found $(VERIFY)/compare.csv --output $(VERIFY)/agreement.csv

report: $(READY) ## one HTML file of all figures and tables, after `make all`: report.html
	$(RUN) snakemake --report report.html

docs: $(READY) ## the pages, the reference and the tutorials as a site: docs/_build/html
	$(RUN) sphinx --fail-on-warning --keep-going -q docs docs/_build/html

bench: $(READY) ## measure speed and memory against peers and floors; wants an idle machine
	$(RUN) benchmarks

lint: $(READY) ## check the style of Python and Snakemake files
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check Snakefile workflow

env: $(READY) ## build the environment only: source .venv/bin/activate

clean: ## remove the environment and caches; results stay
	rm -rf .venv build src/*.egg-info .pytest_cache .hypothesis .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

# An environment does not survive a move, so the stamp holds the folder it was built in.
ifneq ($(shell cat $(LOCKED) 2>/dev/null),$(CURDIR))
.PHONY: $(LOCKED)
endif

$(LOCKED): envs/requirements.lock
	@bash envs/create.sh
	printf '%s' "$(CURDIR)" > $@

$(READY): $(LOCKED) pyproject.toml
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
