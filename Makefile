# Everything lives in .venv; the stamp file makes a second run install nothing again.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench

.PHONY: demo test test-slow test-nightly test-machines test-kafka test-embedded chaos torture lint lint-contracts bench clean setup image image-digests audit sbom

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or say: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/featurestore demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not nightly and not slow"

# Whole days, fleets and other processes over ten seconds each; CI runs them after the others.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not nightly"

test-nightly: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "nightly or not nightly" --timeout 3600

# The whole suite as other machines would run it: zones whose name is not "UTC", and locales. What nightly runs beside it.
ZONES ?= Etc/UTC America/New_York Europe/Berlin
LOCALES ?= C C.utf8
test-machines: $(STAMP)
	for zone in $(ZONES); do for locale in $(LOCALES); do echo "TZ=$$zone LC_ALL=$$locale"; \
	TZ=$$zone LC_ALL=$$locale PYTHONHASHSEED=random $(BIN)/python -m pytest -n 2 --dist loadgroup || exit 1; done; done

# Fails where the real Apache Kafka cannot be had (Java 17 and Maven, or KAFKA_BOOTSTRAP_SERVERS).
test-kafka: $(STAMP)
	FEATURESTORE_TEST_BROKER=kafka $(BIN)/python -m pytest -m kafka

# The same tests on our own broker.
test-embedded: $(STAMP)
	FEATURESTORE_TEST_BROKER=embedded $(BIN)/python -m pytest -m kafka

# Fleets of real processes that are treated badly, one a seed: make chaos SEEDS=100
SEEDS ?= 20
chaos: $(STAMP)
	CHAOS_SEEDS=$(SEEDS) $(BIN)/python -m pytest -n 2 tests/chaos/test_fleet_chaos.py -m "nightly or not nightly" --timeout 3600

# Generated dirty files, contracts, messages and requests against the real commands; a fault names its seed.
TORTURE_SECONDS ?= 600
torture: $(STAMP)
	TORTURE_SECONDS=$(TORTURE_SECONDS) $(BIN)/python -m pytest tests/torture --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The contracts as another tool reads the standard. Its pins are not ours: it has an environment of its own.
lint-contracts: $(STAMP)
	test -x .venv-datacontract/bin/datacontract || { $(PYTHON) -m venv .venv-datacontract && .venv-datacontract/bin/python -m pip install --quiet --disable-pip-version-check 'datacontract-cli>=1.2,<2'; }
	DATACONTRACT=.venv-datacontract/bin/datacontract $(BIN)/python -m pytest -m nightly tests/validation/test_standard.py

# Every artefact of the image with its hash, for this platform.
requirements.lock: pyproject.toml constraints.txt .ci/hashes
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report - -c constraints.txt . | $(PYTHON) .ci/hashes > $@.tmp
	mv $@.tmp $@

image: requirements.lock
	docker build --tag featurestore .

# What the tags of the images stand for now; set PYTHON_IMAGE and the images of the compose files to them.
image-digests:
	for image in python:3.11-slim redis:7.4-alpine apache/kafka:4.1.1; do docker buildx imagetools inspect $$image --format "$$image@{{.Manifest.Digest}}"; done

AUDIT_STAMP := .venv-audit/.installed

$(AUDIT_STAMP):
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'
	@touch $@

audit: $(STAMP) $(AUDIT_STAMP)
	.ci/audit

# The bill of materials of what is installed, in CycloneDX's JSON.
sbom: $(STAMP) $(AUDIT_STAMP)
	.venv-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json .venv

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,bench]'
	@touch $@

clean:
	rm -rf .venv .venv-datacontract .venv-audit requirements.lock sbom.json data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
