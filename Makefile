# Every command a person or CI runs; bare `make` lists them.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PY          := .venv/bin/python
EXTRAS      := s3,torch,dali-cuda12,pipelines,dev
CORE        := $(wildcard loader/core/*.[ch] loader/CMakeLists.txt)
C_FILES     := loader/core/*.[ch] loader/core/tests/*.[ch] loader/core/fuzz/*.c tests/loader/*.c

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format sanitize arm64 fuzz soak wheel bench ci clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.built .venv/.servers ## install what is missing, make .venv, build the extension
	@echo "ready: source .venv/bin/activate"

.venv/.installed: pyproject.toml constraints.txt scripts/install_packages.sh
	scripts/install_packages.sh
	[ -x $(PY) ] || python3 -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt setuptools wheel scikit-build-core cmake ninja
	.venv/bin/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

.venv/.built: .venv/.installed $(CORE)
	.venv/bin/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

.venv/.servers: .venv/.installed tests/servers/requirements.txt scripts/install_test_servers.sh
	scripts/install_test_servers.sh
	@touch $@

demo: .venv/.built ## photographs to a registered model, on this machine
	$(PY) -m components.ingest.sample_photos demo/photos --count 1200
	$(PY) -m pipelines data.source=demo/photos store.root=demo/store

test: setup ## every test, C and Python
	scripts/test_core.sh build/core-plain ""
	$(PY) -m pytest -n 2 --dist worksteal

test-fast: setup ## the tests that take no more than a few seconds each
	$(PY) -m pytest -n 2 -m "not slow"

lint: setup ## ruff, mypy, clang-format, codespell
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run -Werror $(C_FILES)
	.venv/bin/codespell

format: setup ## rewrite Python and C in the house style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(C_FILES)

sanitize: setup ## the C tests, fuzz corpora and loader tests under ASan+UBSan, then under TSan
	scripts/test_core.sh build/core-asan address,undefined
	scripts/test_core.sh build/core-tsan thread
	scripts/test_loader_sanitized.sh

arm64: setup ## the C tests cross-built for arm64, under qemu; not part of ci, two minutes
	scripts/test_core_arm64.sh build/core-arm64

fuzz: setup ## fuzz each parser for SECONDS_EACH (default 60) with clang's libFuzzer
	scripts/fuzz.sh $${SECONDS_EACH:-60}

soak: setup ## the long proofs: fuzzing, random cycles, valgrind; writes docs/soak/<date>.md
	scripts/soak.sh

wheel: setup ## build the wheel and repair it, so that it carries libjpeg-turbo
	scripts/build_wheel.sh

bench: setup ## measure against peers and ceilings; writes benchmarks/results/
	-scripts/install_peers.sh
	$(PY) -m benchmarks

ci: export CI = 1 # tests that lack a server fail
ci: lint test sanitize wheel ## all that must pass before a change lands
	$(MAKE) --no-print-directory demo | scripts/check_demo.sh

clean: ## remove what was built; keeps .venv and data
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
