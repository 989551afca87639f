# Needs make and Python 3.11 or newer; everything else goes into virtual environments here.
# Another interpreter: make demo PYTHON=/path/to/python

VERSIONS = 3.11 3.12 3.13

# The first that is new enough and can make virtual environments (Debian packs that separately).
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; exit; fi; done)

# Where Python of the given version is: on the path, or kept by pyenv.
interpreter = $(shell for python in python$(1) $$HOME/.pyenv/versions/$(1).*/bin/python; do \
	if "$$python" -c 'import ensurepip' >/dev/null 2>&1; then echo "$$python"; exit; fi; done)

SHELL = bash
.SHELLFLAGS = -o pipefail -c
# $(call pip_install,environment,what): names each package as it is fetched, because minutes of
# silence look like a hang; everything that pip says is shown when it fails.
pip_install = $(1)/bin/python -m pip install --disable-pip-version-check --progress-bar off $(2) 2>&1 \
	| tee $(1)/install.log | sed -un 's/^Collecting \([A-Za-z0-9._-]*\).*/  \1/p' \
	|| { cat $(1)/install.log >&2; exit 1; }
RUN = .venv/bin/python -m
BENCH = .venv-bench/bin/python -m
# What depends on the version of Python; `make test` runs everything, on one of them.
EVERYWHERE = $(addprefix tests/,agent buffer config crash event process wire) \
	$(wildcard tests/test_*.py)
# What needs servers of its own has a target of its own.
APART = --ignore=tests/hosts --ignore=tests/wire/proxies
# More for pytest: make test PYTEST="-x -k spool"
PYTEST ?=
# Most of their time the tests wait for processes and clocks, so more of them than cores go at once.
WORKERS ?= 3
# More simulated worlds: make sim SEEDS=20000; one of them again: make sim SEED=7
SEEDS ?= 3000
SEED ?=
# More kills of a process that records: make crash ROUNDS=1000
ROUNDS ?= 100

# Processes started by tests write their share of the coverage here too, wherever they run.
export COVERAGE_FILE = $(CURDIR)/.coverage

.DEFAULT_GOAL = help
.PHONY: help demo test test-all hosts wire sim crash mutants lint docs bench bench-quick bench-pages clean

help:
	@echo "make demo      replay real usage into a local Stripe and compare the books"
	@echo "make test      run the tests, with branch coverage"
	@echo "make test-all  run what depends on it on each of $(VERSIONS) that is here"
	@echo "make hosts     run the applications of the how-to pages under their real servers"
	@echo "make wire      run nginx and haproxy in front of a local Stripe"
	@echo "make sim       try more simulated worlds: SEEDS=20000, or one again: SEED=7"
	@echo "make crash     kill and restart processes that record: ROUNDS=100"
	@echo "make mutants   break the code in many ways and see the tests fail"
	@echo "make lint      style, types, layers, generated pages"
	@echo "make docs      build docs/_build/html"
	@echo "make bench     measure everything, beside peers, into docs/explanation/performance.md"
	@echo "make bench-quick   the same in under three minutes, into build/ only"
	@echo "make clean     remove what the others made"

demo: .venv-demo/.stamp
	@.venv-demo/bin/meter-agent demo

test: .venv/.stamp .tools/promtool
	@$(RUN) coverage erase
	@$(RUN) coverage run -m pytest -q -n $(WORKERS) $(APART) $(PYTEST)
	@$(RUN) coverage combine -q
	@$(RUN) coverage report

test-all:
	@for version in $(VERSIONS); do $(MAKE) --no-print-directory test-$$version || exit 1; done

test-3.%:
	@if [ -z "$(call interpreter,3.$*)" ]; then echo "python 3.$*: not here, skipped"; exit 0; fi; \
	$(MAKE) --no-print-directory .venv-3.$*/.stamp && \
	echo "python 3.$*:" && .venv-3.$*/bin/python -m pytest -q -n $(WORKERS) $(APART) $(EVERYWHERE) $(PYTEST)

hosts: .venv/.stamp-hosts
	@$(RUN) pytest -q -n $(WORKERS) tests/hosts $(PYTEST)

wire: .venv/.stamp .tools/nginx .tools/haproxy
	@$(RUN) pytest -q -n $(WORKERS) tests/wire/proxies $(PYTEST)

lint: .venv/.stamp
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@.venv/bin/lint-imports
	@.venv/bin/python docs/_generate.py --check

docs: .venv/.stamp-docs
	@$(RUN) sphinx -q -W --keep-going -n docs docs/_build/html
	@echo "docs/_build/html/index.html"

sim: .venv/.stamp
	@$(RUN) tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

crash: .venv/.stamp
	@$(RUN) tests.crash --rounds $(ROUNDS)

mutants: .venv/.stamp
	@$(RUN) tests.mutants

bench: .venv-bench/.stamp
	@$(BENCH) benchmarks --output benchmarks/results/full.json
	@$(BENCH) benchmarks.pages

bench-quick: .venv-bench/.stamp
	@$(BENCH) benchmarks --quick --output build/bench-quick.json

bench-pages: .venv-bench/.stamp
	@$(BENCH) benchmarks.pages

clean:
	rm -rf .tools .venv .venv-* .coverage .coverage.* docs/_build build dist
	rm -rf .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo has an environment of its own: who tries it first waits for a few small packages, not
# for type checkers and test tools. Nothing is built twice by those who only develop.
.venv-demo/.stamp: pyproject.toml
	$(call make_venv,$(PYTHON),.venv-demo,cli$(comma)sandbox)

# What is measured has only its own dependencies around it, and the peers to compare it with.
.venv-bench/.stamp: pyproject.toml
	$(call make_venv,$(PYTHON),.venv-bench,bench)

.venv/.stamp: pyproject.toml
	$(call make_venv,$(PYTHON),.venv,dev)

.venv-3.%/.stamp: pyproject.toml
	$(call make_venv,$(call interpreter,3.$*),.venv-3.$*,dev)

# Where they cannot be had, the tests that need them fail and say so.
.tools/promtool:
	-@.ci/debian-tool promtool prometheus

.tools/nginx .tools/haproxy:
	-@.ci/debian-tool $(@F)

.venv/.stamp-%: .venv/.stamp
	@echo "installing the extra $*"
	@$(call pip_install,.venv,-e '.[$*]')
	@touch $@

comma = ,
define make_venv
@[ -n "$(1)" ] || { echo "no Python 3.11 or newer with venv found; name one: PYTHON=..." >&2; exit 2; }
@echo "installing the packages of [$(3)] into $(2), one to three minutes:"
@$(1) -m venv $(2)
@$(call pip_install,$(2),-e '.[$(3)]')
@touch $(2)/.stamp
endef
