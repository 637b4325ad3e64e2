# Everything here needs make, coreutils and Python 3.11 or newer; nothing else has to be there.

# The first of these that is new enough, unless told: make PYTHON=/opt/python/bin/python3.12
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.SHELLFLAGS := -eu -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
VENV := .venv/.installed
ROOMS := node router client cluster
PROTO_ROOMS := v1 internal wire

# Folders that hold Python, as far as they exist. Tests of `make test` take < 10 minutes on 2 cores.
PYTHON_FOLDERS := $(wildcard proto node router client cluster tests bench tools)
IN_PROCESS_TESTS := $(wildcard tests/unit tests/contract tests/sim tests/security)
# `make cluster` has the long ones of real processes.
LONG_CLUSTER_TESTS := $(foreach subject,backup contract debug_bundle growing large_messages leaders load rotation,\
	tests/cluster/test_$(subject).py)
CLUSTER_TESTS := $(filter-out $(LONG_CLUSTER_TESTS),$(wildcard tests/cluster/test_*.py)) \
	tests/quorum/test_levels.py::test_with_one_down
WORKERS ?= 2

SEEDS ?= 150
SEED0 ?= 0
INPUTS ?= 60000
HOSTILE ?= 100000
CORPUS ?=
MESSAGES ?= 1000000
REQUESTS ?= 20000
REPORT ?= build/load.md

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET"
	@while IFS= read -r line; do case $$line in [a-z]*:*"## "*) \
		printf '  %-10s %s\n' "$${line%%:*}" "$${line##*## }";; esac; done < Makefile

.PHONY: venv
venv: $(VENV) ## set up .venv from requirements.lock (quick when nothing changed)

# In two steps, so that the one source-only dependency is built with the locked setuptools
# and nothing is fetched whose hash is not in the lock.
$(VENV): requirements.lock pyproject.toml tools/lock_entries.py
	@if [ -z "$(PYTHON)" ]; then echo "mailraft needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; fi
	@[ -x $(BIN)/python ] || { echo "creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "installing requirements.lock into .venv"
	@mkdir -p build
	@$(BIN)/python tools/lock_entries.py setuptools wheel > build/requirements-build.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps --only-binary :all: -r build/requirements-build.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps --no-build-isolation -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: $(VENV) ## start 3 nodes and a router, deliver mail, kill a node: CORPUS=folder for your own mail
	@$(BIN)/python -m mailraft.cluster.demo $(if $(CORPUS),--corpus $(CORPUS))

# Real processes run one test at a time: two clusters beside each other on a small machine time
# out for no fault of theirs. (xdist_group would say that, but pytest 9.2 ignores xdist 3.8's.)
.PHONY: test
test: $(VENV) ## run the tests: unit, contract, simulation, cluster of real processes
	@failed=0; \
	$(BIN)/python -m pytest $(IN_PROCESS_TESTS) --numprocesses $(WORKERS) || failed=1; \
	$(if $(CLUSTER_TESTS),$(BIN)/python -m pytest $(CLUSTER_TESTS) || failed=1;) \
	exit $$failed

.PHONY: cluster
cluster: $(VENV) ## run the long tests of real processes: growing, leaders, rotation, contract and others
	@$(BIN)/python -m pytest $(LONG_CLUSTER_TESTS)

.PHONY: faults
faults: $(VENV) ## inject faults into real clusters (slow)
	@$(BIN)/python -m pytest tests/faults

.PHONY: hostile
hostile: $(VENV) ## fuzzed and hostile input at every port of real processes: HOSTILE=how many (5 min)
	@MAILRAFT_HOSTILE_CALLS=$(HOSTILE) MAILRAFT_FUZZ_SEED=$(SEED0) \
		$(BIN)/python -m pytest tests/faults/test_hostile.py -s

.PHONY: quorum
quorum: $(VENV) ## prove every cell of the consistency menu under faults, and judge histories (slow)
	@$(BIN)/python -m pytest tests/quorum tests/sim/test_quorum_reads.py

.PHONY: tradeoffs
tradeoffs: $(VENV) ## measure what each level costs and survives into docs/tradeoffs.md (< 10 minutes)
	@PYTHONPATH=tools $(BIN)/python -m bench.tradeoffs

.PHONY: compare
compare: $(VENV) ## beside etcd, PostgreSQL, NATS, Dovecot into docs/compare.md (< 45 min); QUICK=1
	@PYTHONPATH=tools:. $(BIN)/python -m bench.compare $(if $(QUICK),--quick) \
		$(if $(ONLY),--only $(ONLY)) $(if $(ROWS),--rows $(ROWS))

# Debian starts what it installs; the comparison starts its own, and needs none of those.
.PHONY: compare-deps
compare-deps: $(VENV) ## install the peers of `make compare` from Debian's packages (as root)
	@apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends \
		etcd-server postgresql-15 dovecot-imapd dovecot-lmtpd
	@echo "NATS is in .venv; stop what runs already and is not wanted: systemctl stop etcd ..."

.PHONY: alerts
alerts: $(VENV) ## a real Prometheus scrapes a cluster with faults: do the right alerts fire? (4 min)
	@$(BIN)/python -m pytest tests/alerts -s

.PHONY: backup
backup: $(VENV) ## destroy a cluster under load and restore it; an account at 20 random times (5 min)
	@$(BIN)/python -m pytest tests/backup -s

.PHONY: upgrade
upgrade: $(VENV) ## roll the last release to this tree and back under load, leaders on either side (5 min)
	@$(BIN)/python -m pytest tests/upgrade -s

.PHONY: runbooks
runbooks: $(VENV) ## do what docs/runbooks say, on real processes to which it has happened (< 10 min)
	@$(BIN)/python -m pytest tests/runbooks -s

.PHONY: micro
micro: $(VENV) ## measure what each layer of a delivery costs, beside what was recorded (30 s)
	@$(BIN)/python -m bench.micro

.PHONY: bench-check
bench-check: $(VENV) ## fail if a layer costs 1.5 times what was recorded, in multiples of fixed work
	@$(BIN)/python -m bench.micro --check

.PHONY: failover
failover: $(VENV) ## kill a leader 20 times: how long until the next write is acknowledged
	@$(BIN)/python -m bench.failover

.PHONY: rehearse
rehearse: $(VENV) ## join, drain, decommission, kill, replace, rezone, restart under load (< 28 minutes)
	@$(BIN)/python -m bench.rehearse

.PHONY: load
load: $(VENV) ## load a cluster of its own with locust users: REQUESTS=how many, REPORT=page to write
	@$(BIN)/python -m bench.load --requests $(REQUESTS) --report $(REPORT)

.PHONY: scale
scale: $(VENV) ## measure more nodes, shards, bytes and callers into docs/scale.md, capacity.md (< 20 min)
	@PYTHONPATH=tools $(BIN)/python -m bench.scale

.PHONY: large
large: $(VENV) ## ten uploads of 50 MiB at once: what memory each process takes above idle
	@$(BIN)/python -m bench.large_messages

.PHONY: sim
sim: $(VENV) ## simulate more histories: SEEDS=how many, SEED0=the first
	@$(BIN)/python -m tests.sim.run --seeds $(SEEDS) --seed0 $(SEED0) --workers $(WORKERS)

.PHONY: mutants
mutants: $(VENV) ## bring back the faults of stock pysyncobj: each must be caught
	@$(BIN)/python -m tests.sim.mutation

.PHONY: contract-mutants
contract-mutants: $(VENV) ## take out what keeps each invariant of a mail store: its test must see it
	@$(BIN)/python -m tests.contract.mutation

.PHONY: fuzz
fuzz: $(VENV) ## feed decoders near misses: INPUTS=how many each, SEED0=where chance begins
	@MAILRAFT_FUZZ_INPUTS=$(INPUTS) MAILRAFT_FUZZ_SEED=$(SEED0) \
		$(BIN)/python -m pytest tests/unit/test_fuzz.py --numprocesses $(WORKERS) -rP

.PHONY: mailbox-size
mailbox-size: $(VENV) ## measure a mailbox of MESSAGES (default 1,000,000) beside one of 1,000
	@$(BIN)/python -m bench.mailbox_size --messages $(MESSAGES)

.PHONY: roundtrip
roundtrip: $(VENV) ## import, export and import again the mail of CORPUS on a cluster, bytes compared
	@MAILRAFT_ROUNDTRIP_CORPUS=$(abspath $(CORPUS)) \
		$(BIN)/python -m pytest tests/cluster/test_roundtrip.py -s

.PHONY: placement
placement: $(VENV) ## simulate placement at 1,000 nodes into docs/placement.md and .svg
	@$(BIN)/python tools/placement_report.py

.PHONY: coverage
coverage: $(VENV) ## run the tests and report the lines they miss
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest $(IN_PROCESS_TESTS) $(CLUSTER_TESTS) $(LONG_CLUSTER_TESTS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

.PHONY: lint
lint: $(VENV) mypytree ## check style, types, the contract, generated stubs and tidiness
	@echo "== ruff check";           $(BIN)/ruff check --quiet $(PYTHON_FOLDERS)
	@echo "== ruff format --check";  $(BIN)/ruff format --quiet --diff $(PYTHON_FOLDERS)
	@echo "== mypy --strict";        $(BIN)/mypy build/mypy/mailraft $(wildcard tests bench tools)
	@echo "== buf lint";             $(BIN)/python tools/protos.py lint
	@echo "== buf breaking";         $(BIN)/python tools/protos.py breaking
	@echo "== feature levels";       $(BIN)/python tools/feature_gates.py
	@echo "== stubs as generated";   $(BIN)/python tools/protos.py check
	@echo "== docs as generated";    $(BIN)/python tools/gen_docs.py --check
	@echo "== tidy";                 $(BIN)/python -m pytest --quiet tests/unit/test_tidy.py

.PHONY: format
format: $(VENV) ## format the code and sort its imports
	@$(BIN)/ruff check --quiet --select I --fix $(PYTHON_FOLDERS)
	@$(BIN)/ruff format $(PYTHON_FOLDERS)

.PHONY: proto
proto: $(VENV) ## regenerate the stubs beside the .proto files
	@$(BIN)/python tools/protos.py generate

.PHONY: docs
docs: $(VENV) ## rewrite docs/cli.md, configuration.md, metrics.md, roles.md from what they document
	@$(BIN)/python tools/gen_docs.py

# The rooms in the shape they have once installed, for mypy (see pyproject.toml).
.PHONY: mypytree
mypytree: $(VENV)
	@rm -rf build/mypy && mkdir -p build/mypy/mailraft build/mypy/google
	@for room in $(wildcard $(ROOMS)); do ln -s ../../../$$room build/mypy/mailraft/$$room; done
	@for room in $(PROTO_ROOMS); do ln -s ../../../proto/mailraft/$$room build/mypy/mailraft/$$room; done
	@ln -s "$$($(BIN)/python -c 'import google.rpc as m; print(m.__path__[0])')" build/mypy/google/rpc

.PHONY: lock
lock: $(VENV) ## rewrite requirements.lock from pyproject.toml: UPGRADE=1 for newer versions
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group build --group lock \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" \
		$(if $(UPGRADE),--upgrade) --quiet --output-file requirements.lock

.PHONY: wheel
wheel: $(VENV) ## build the wheel into dist/
	@rm -rf build/lib build/bdist.* && $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## remove .venv and everything built
	@rm -rf .venv build dist *.egg-info .ruff_cache .pytest_cache .hypothesis .mailraft
