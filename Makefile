# `make help` lists the targets. Needed: Go, make, git; for `make race` also a C
# compiler. Everything that is built lands in .bin/.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

BIN := $(CURDIR)/.bin
GO  := go

# Each package is tested once, but for TWICE: those whose code runs concurrently under the race
# detector, those that run whole programs always anew (the go command does not see
# what the programs are built of, so it would show old results), the rest as usual.
RACE := $(addprefix ./,$(addsuffix /...,distributor ingester querier compactor \
	internal/blockstore internal/blockstream internal/pagefile internal/remoteblock internal/cluster internal/rpc internal/loadgen internal/selfmonitor internal/server internal/write))
# Here comparisons are so long that the race detector gets a selection of them.
TWICE := ./querier
E2E  := ./test/e2e/... ./test/faults/... ./test/migrate/...

# golangci-lint runs vet, on everything.
GOTEST := $(GO) test -vet=off -timeout 30m

FUZZTIME ?= 20s
ROUNDS   ?= 50
OUTAGE   ?= 10m
PROTOCOL ?= 1
ARGS     ?=

# The tools' versions are pinned by modules of their own, one for each, so that
# neither their dependencies nor ours choose versions for the other.
TOOLS := $(addprefix $(BIN)/,golangci-lint prometheus promtool versitygw helm kubeconform kubernetes-schemas compose-spec)
PROTO_TOOLS := $(addprefix $(BIN)/,buf protoc-gen-go protoc-gen-go-grpc)

# cgo is on only if there is a C compiler, and the race detector needs cgo.
HAVE_CC := $(shell command -v $$($(GO) env CC) 2>/dev/null)

##@ Use

.PHONY: run
run: build ## Build and run the whole system in one process; ARGS="--flag ..." passes flags on
	exec $(BIN)/hundredfold $(ARGS)

.PHONY: build
build: ## Build .bin/hundredfold
	@$(GO) build -o $(BIN)/hundredfold ./cmd/hundredfold

##@ Try a cluster

.PHONY: cluster
cluster: build $(BIN)/versitygw ## Run a cluster on loopback: S3, 2 distributors, 3 ingesters, 2 queriers, a compactor
	@$(GO) build -o $(BIN)/devcluster ./test/devcluster
	@exec $(BIN)/devcluster run

.PHONY: cluster-add cluster-drain cluster-kill cluster-start
cluster-add: ## Add an ingester to it; ZONE=a|b|c
cluster-drain: ## Drain the newest ingester and delete its disk; MEMBER=NAME another
cluster-kill: ## Kill the newest ingester; MEMBER=NAME any other process
cluster-start: ## Start again what was killed; MEMBER=NAME
cluster-add cluster-drain cluster-kill cluster-start: cluster-%:
	@$(BIN)/devcluster $* $(if $(MEMBER),--member=$(MEMBER)) $(if $(ZONE),--zone=$(ZONE))

##@ Check

.PHONY: test
test: lint check unit ## Everything that CI checks: linters, generated files, all tests, race detector

.PHONY: unit
unit: tools ## All tests, end-to-end ones included, those of concurrent packages under the race detector
ifneq ($(HAVE_CC),)
	@$(GOTEST) $(TWICE) $$($(GO) list ./... | grep -vxF "$$($(GO) list $(RACE) $(E2E))")
	@$(GOTEST) -race $(RACE)
else ifdef CI
	@echo "make test: the race detector needs a C compiler; install gcc" >&2; exit 1
else
	@echo "make test: SKIPPED the race detector, which needs a C compiler (install gcc)"
	@$(GOTEST) $$($(GO) list ./... | grep -vxF "$$($(GO) list $(E2E))")
endif
	@$(GOTEST) -p 1 -count=1 $(E2E)

.PHONY: test-short
test-short: ## Tests that take neither other programs nor long
	@$(GO) test -short $$($(GO) list ./... | grep -vxF "$$($(GO) list $(E2E))")

.PHONY: race
race: tools ## All tests under the race detector
	@$(GOTEST) -race ./...

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/promtool $(BIN)/buf ## Linters, on the code and on what deploy/ holds
	@$(BIN)/golangci-lint run
	@$(BIN)/buf lint
	@$(BIN)/promtool check rules --lint=all --lint-fatal deploy/prometheus/alerts.yml
	@$(BIN)/promtool check config --syntax-only deploy/prometheus/prometheus.yml

.PHONY: format
format: $(BIN)/golangci-lint ## Format all Go files
	@$(BIN)/golangci-lint fmt

.PHONY: check
check: $(PROTO_TOOLS) ## go.mod is tidy, generated code is up to date, and the protocols break nobody
	@$(GO) mod tidy -diff
	@rm -rf $(BIN)/proto && $(BIN)/buf generate -o $(BIN)/proto
	@for file in $$(cd $(BIN)/proto/proto && find . -name '*.go'); do cmp "proto/$$file" "$(BIN)/proto/proto/$$file"; done
	@$(BIN)/buf breaking --against proto/released.binpb

.PHONY: fuzz
fuzz: ## Fuzz every decoder for FUZZTIME each
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's/:func / /' | while read -r file name; do \
		echo "== $$name in $$(dirname "$$file")"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
	done

.PHONY: chaos
chaos: tools ## Kill a process, and parts of a cluster, ROUNDS times; take the object store away for OUTAGE; break compaction off at each step; find every acknowledged sample
	@HUNDREDFOLD_CHAOS_ROUNDS=$(ROUNDS) $(GO) test -count=1 -timeout 1h -run TestAPassInterruptedAtAnyStepIsCompletedByTheNext ./compactor
	@HUNDREDFOLD_CHAOS_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 3h -run TestNothingAcknowledgedIsLostByKills ./test/e2e
	@HUNDREDFOLD_CHAOS_ROUNDS=$(ROUNDS) HUNDREDFOLD_OUTAGE=$(OUTAGE) $(GO) test -count=1 -v -timeout 6h ./test/faults

##@ Measure

.PHONY: bench
bench: build ## Benchmarks of the hot paths, then the cost of the whole process under load
	@$(GO) test -run '^$$' -bench . -benchmem $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs dirname | sort -u)
	@scripts/bench.sh

.PHONY: bench-cluster
bench-cluster: build $(BIN)/versitygw ## The cost of a distributor and three ingesters with three replicas, all processes together
	@$(GO) build -o $(BIN)/devcluster ./test/devcluster
	@$(BIN)/devcluster bench -- --series=100000 --span=1h --samples-per-request=2000 --senders=8 --protocol=$(PROTOCOL)

.PHONY: bench-restart
bench-restart: build ## What a restart costs after a kill and after a clean stop; SERIES=1000000 SPAN=2h need 8 GB of disk
	@scripts/bench-restart.sh

.PHONY: bench-tenants
bench-tenants: build ## What small tenants cost in memory, files, CPU and restarts; TENANTS=10000 needs 23,000 open files (ulimit -n)
	@scripts/bench-tenants.sh

.PHONY: bench-history
bench-history: build $(BIN)/versitygw $(BIN)/prometheus ## What queries of a year cost on a distant object store; PROMETHEUS=1 beside stock Prometheus
	@$(GO) build -o $(BIN)/history ./test/history
	@scripts/bench-history.sh $(ARGS)

.PHONY: compare
compare: build $(if $(TARGETS),$(if $(PROMETHEUS),$(BIN)/prometheus),$(BIN)/prometheus) ## The same load into this build and stock Prometheus, or TARGETS="NAME,URL,PID ..."; see docs/comparing.md
	@scripts/compare.sh

.PHONY: profile
profile: build ## As the second half of bench, with a CPU profile in .bin/cpu.pprof
	@PROFILE=$(BIN)/cpu.pprof scripts/bench.sh
	@$(GO) tool pprof -top -nodecount 40 $(BIN)/hundredfold $(BIN)/cpu.pprof

##@ Maintain

.PHONY: generate
generate: $(PROTO_TOOLS) ## Write docs/configuration.md and the code of proto/
	@$(BIN)/buf generate
	@$(GO) test ./cmd/hundredfold -run ConfigurationPage -update

.PHONY: tools
tools: $(TOOLS) ## Build golangci-lint, Prometheus, promtool, an S3 server, and what checks deploy/

# Without the discovery of targets, for which a fifth of a Prometheus's packages are.
NO_DISCOVERY := -tags remove_all_sd

# A tool is built when it is absent or its version has changed.
build_tool = @echo "building $(@F)"; $(GO) build -C tools/$(1) -o $@ $(2) && touch $@

$(BIN)/golangci-lint: tools/lint/go.mod
	$(call build_tool,lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
$(BIN)/prometheus: tools/prometheus/go.mod
	$(call build_tool,prometheus,$(NO_DISCOVERY) github.com/prometheus/prometheus/cmd/prometheus)
$(BIN)/promtool: tools/prometheus/go.mod
	$(call build_tool,prometheus,$(NO_DISCOVERY) github.com/prometheus/prometheus/cmd/promtool)
$(BIN)/versitygw: tools/s3/go.mod
	$(call build_tool,s3,github.com/versity/versitygw/cmd/versitygw)
$(BIN)/helm: tools/kubernetes/go.mod
	$(call build_tool,kubernetes,helm.sh/helm/v3/cmd/helm)
$(BIN)/kubeconform: tools/kubernetes/go.mod
	$(call build_tool,kubernetes,github.com/yannh/kubeconform/cmd/kubeconform)
$(BIN)/compose-spec: tools/kubernetes/go.mod
	$(call build_tool,kubernetes,github.com/compose-spec/compose-go/v2/cmd)
$(BIN)/kubernetes-schemas: $(addprefix tools/kubernetes/schemas/,go.mod main.go)
	@echo "writing $(@F)"; $(GO) run -C tools/kubernetes/schemas . $@ && touch $@
$(BIN)/buf: tools/proto/go.mod
	$(call build_tool,proto,github.com/bufbuild/buf/cmd/buf)
$(BIN)/protoc-gen-go: tools/proto/go.mod
	$(call build_tool,proto,google.golang.org/protobuf/cmd/protoc-gen-go)
$(BIN)/protoc-gen-go-grpc: tools/proto/go.mod
	$(call build_tool,proto,google.golang.org/grpc/cmd/protoc-gen-go-grpc)

.PHONY: clean
clean: ## Remove what was built; ./data stays
	rm -rf $(BIN)

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
