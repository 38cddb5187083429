# `make` alone lists what there is to do. What CI runs (.ci/run) is `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Two targets may want the same npm packages; Go is parallel by itself.
.NOTPARALLEL:

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The time of the commit: no hub that runs the agent can be before it.
BUILT := $(shell git log -1 --format=%cI 2>/dev/null)
GO_BUILD = CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)'
# The agent speaks HTTP/1.1 only, as WebSocket and the local API need; without
# net/http's HTTP/2 it is 0.6 MB smaller. cross/main.go builds with the same tag.
AGENT_BUILD = CGO_ENABLED=0 go build -trimpath -tags nethttpomithttp2 -ldflags '-X main.version=$(VERSION) -X main.builtAt=$(BUILT)'

# The packages with plain tests; cloud/e2e has a target of its own. Packages of
# the web app's tree that happen to hold Go files are not ours.
PACKAGES = $$(go list ./... | grep -v -e /node_modules/ -e /cloud/e2e)
TESTFLAGS ?=
# How long the end-to-end tests may take in all, and each fuzzer.
E2E_TIMEOUT ?= 8m
# How many of them run at once: they mostly wait.
E2E_PARALLEL ?= 16
FUZZTIME ?= 5s
# Which benchmarks: a regular expression.
BENCH ?= .

LINTER := bin/tools/golangci-lint

# The web app is built where Node is; elsewhere a stub page says how.
NODE := $(shell node -e 'const [a, b] = process.versions.node.split("."); if (+a > 20 || +a === 20 && +b >= 19) console.log("yes")' 2>/dev/null)
WEB_APP := cloud/web/dist/app/index.html
WEB_SOURCES := $(shell find cloud/web/src cloud/web/public -type f 2>/dev/null) $(wildcard \
	cloud/web/index.html cloud/web/package-lock.json cloud/web/vite.config.ts cloud/web/tsconfig.json)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: setup-run build ## build all, start the cloud, an agent and a demo camera (CAMERA=rtsp://... for a real one)
	@exec bin/vms-run

.PHONY: build
build: web ## build the web app and the programs into bin/
	$(GO_BUILD) -o bin/vms-cloud ./cloud/cmd/vms-cloud
	$(AGENT_BUILD) -o bin/vms-agent ./agent/cmd/vms-agent
	$(GO_BUILD) -o bin/vms-demo-camera ./scripts/demo-camera
	$(GO_BUILD) -o bin/vms-run ./scripts/run

.PHONY: web
ifeq ($(NODE),yes)
web: $(WEB_APP)
else
web:
	@echo "note: Node 20.19 or newer is not installed, so the page at / will be a stub; all else works"
endif

$(WEB_APP): $(WEB_SOURCES)
	scripts/setup web
	cd cloud/web && npm run --silent build
	@touch $@

.PHONY: setup setup-run
setup: ## install what tests need: ffmpeg, a browser, emulators, modules
	scripts/setup test

setup-run:
	@scripts/setup run

.PHONY: test
test: setup ## everything that CI runs: check, 32-bit tests, end-to-end tests
	@$(MAKE) check
	@$(MAKE) test-32
	@$(MAKE) e2e
	@echo "make test: all passed"

.PHONY: check
check: fmt vet lint unit web-check ## format, vet, lint, unit tests with the race detector: under 3 minutes

.PHONY: fmt vet
fmt:
	@unformatted="$$(go list -f '{{.Dir}}' ./... | grep -v /node_modules/ | xargs -d '\n' gofmt -l)"; \
	if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w):"; echo "$$unformatted"; exit 1; fi

vet:
	go vet $(PACKAGES) ./cloud/e2e/...

.PHONY: lint
lint: $(LINTER) ## run the linter (pinned in scripts/tools/go.mod)
	$(LINTER) run

$(LINTER): scripts/tools/go.mod scripts/tools/go.sum
	cd scripts/tools && go build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: unit
unit: # many wait more than they compute: four at a time
	go test -race -short -p 4 $(TESTFLAGS) $(PACKAGES)

.PHONY: web-check
ifeq ($(NODE),yes)
web-check:
	@scripts/setup web
	cd cloud/web && npm run --silent check && npm test --silent
else
web-check:
	@echo "note: Node 20.19 or newer is not installed; the web app is not checked"
endif

.PHONY: test-32
test-32: ## tests of pkg and agent as 32-bit programs, as most hubs are
ifeq ($(shell uname -m),x86_64)
	GOARCH=386 CGO_ENABLED=0 go test -short $(TESTFLAGS) ./pkg/... ./agent/...
else
	@echo "note: the 32-bit tests need an x86-64 machine; skipped"
endif

# Shows results, figures and faults as they come; all that was said is in
# build/e2e.log, and on the screen when something failed. The first parameter is
# flags, the second a package: one, or go test would keep all back to the end.
define e2e-test
mkdir -p build; status=0; \
go test -count=1 -v $(1) $(2) 2>&1 | tee build/e2e.log | grep --line-buffered -E '^ *(---|ok|FAIL|figure|fault)' || status=1; \
if grep -q -E '^(FAIL|panic)' build/e2e.log || [ $$status -ne 0 ]; then tail -n 400 build/e2e.log; exit 1; fi
endef

.PHONY: e2e
e2e: setup build ## agent and cloud together, with a real camera server, ffmpeg and a browser
	@$(call e2e-test,-timeout $(E2E_TIMEOUT) -parallel $(E2E_PARALLEL) $(TESTFLAGS),./cloud/e2e)

# Outages of ten minutes, all faults at once. FAULT=name is that one alone.
FAULT ?=
.PHONY: chaos
chaos: setup build ## everything that goes wrong in the field, at full length: about 20 minutes (FAULT=name)
	@$(if $(FAULT),:,$(call e2e-test,-run '^TestPowerCut$$',./agent/spool))
	@$(if $(FAULT),:,export PROPERTY_RUNS=5000; $(call e2e-test,-run '^TestProperties$$' -timeout 30m,./cloud/e2e))
	@export CHAOS=full; $(call e2e-test,-run 'TestChaos/$(FAULT)' -parallel 32 -timeout 40m,./cloud/e2e)

# BENCH_ONLINE and BENCH_OUTAGE are how long the phases last, such as 10m.
.PHONY: bench-spool
bench-spool: setup build ## flash wear, memory, replay of a hub with four cameras: about 10 minutes, or it fails
	@export BENCH_SPOOL=1; $(call e2e-test,-run '^TestSpoolBench$$' -timeout 60m,./cloud/e2e)

# BENCH_FLAT is how long the memory is looked at, such as 2m; BENCH_PROFILE a folder for a profile.
BENCH_FLAT ?= 30m
.PHONY: bench-worker
bench-worker: setup build ## CPU and memory of a worker against ffmpeg and rclone: about 40 minutes (BENCH_FLAT), or it fails
	@export BENCH_WORKER=1 BENCH_FLAT=$(BENCH_FLAT); $(call e2e-test,-run '^TestWorkerBench$$' -timeout 90m,./cloud/e2e)

# BENCH_SCALE_CHURN is how long workers come and go, such as 5m.
BENCH_SCALE_CHURN ?= 30m
.PHONY: bench-scale
bench-scale: setup build ## 60 streams on three workers that are drained, killed and started: about 40 minutes (BENCH_SCALE_CHURN), or it fails
	@export BENCH_SCALE=1 BENCH_SCALE_CHURN=$(BENCH_SCALE_CHURN); $(call e2e-test,-run '^TestScaleBench$$' -timeout 120m,./cloud/e2e)

# BENCH_SCALE_CHURN=30m: workers are killed, drained and started for so long beside.
.PHONY: bench-scale
bench-scale: setup build ## 60 streams on three workers, drained and killed; assignments: some minutes, or it fails
	@export BENCH_SCALE=1; $(call e2e-test,-run '^TestScaleBench$$' -timeout 60m,./cloud/e2e)

.PHONY: fuzz
fuzz: ## run every fuzzer for FUZZTIME (5s)
	@go list ./... | grep -v /node_modules/ | while read -r pkg; do \
		for f in $$(go test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; \
			go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
		done; \
	done

.PHONY: bench-live
bench-live: setup build ## how soon the page shows the live picture: at most 2 s, or it fails
	@export LIVE_MS=2000; $(call e2e-test,-run TestFirstLight,./cloud/e2e)

.PHONY: bench-control
bench-control: setup build ## from a start over REST to the first chunk at the worker: p95 at most 1 s, or it fails
	@export BENCH_CONTROL=1; $(call e2e-test,-run '^TestControlBench$$',./cloud/e2e)

.PHONY: bench
bench: ## benchmarks with allocations (BENCH=regexp)
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PACKAGES)

.PHONY: cross
cross: ## a static vms-agent for every hub, started under emulation and measured
	go run ./cross -o build/cross -version '$(VERSION)' -built '$(BUILT)'

.PHONY: clean
clean: ## remove what was built; recordings in data/ stay
	rm -rf bin build cloud/web/dist/app
