# `make help` lists the targets. README.md says where each is explained.

SHELL := bash
.DEFAULT_GOAL := help

BINARY := target/release/webhook-notifier
SERVICES := scripts/services.sh
WITH := scripts/with-services.sh
INSTALL = PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install.sh
# The servers that the commands use: those of the file that ENV_FILE names, such as the installed
# service's; otherwise those of AMQP_URL and DATABASE_URL; otherwise the private ones.
RUNNING := $(if $(ENV_FILE),,$(WITH) --running) $(BINARY)
SETTINGS := $(if $(ENV_FILE),--env-file "$(ENV_FILE)")
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY_ROOT := .local/cargo-deny-$(CARGO_DENY_VERSION)
CARGO_DENY := $(CARGO_DENY_ROOT)/bin/cargo-deny

QUEUE ?= high_priority
TYPE ?= sample.published
ADDR ?= 127.0.0.1:8080
PREFIX ?= /usr/local

##@ Start here
.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Set everything up, deliver some events, show what happened, clean up
	@$(WITH) scripts/demo.sh $(BINARY)

.PHONY: test
test: ## Run all tests, against private servers; T=backlogs::pauses: those with that in their name
	@SERVICES_SYNC=no ONLY='$(T)' $(WITH) scripts/test.sh

.PHONY: test-fast
test-fast: ## Run the unit tests and the quickest others: about a minute, once compiled
	@SERVICES_SYNC=no FAST=yes $(WITH) scripts/test.sh

##@ Run it
.PHONY: build
build: $(BINARY) ## Build the release binary: target/release/webhook-notifier

# Cargo runs only if a source has changed: after `make build`, root needs no toolchain for
# `sudo make install`. Another BINARY=… is used as it is.
target/release/webhook-notifier: Cargo.toml Cargo.lock $(shell find src sql -type f)
	cargo build --release --locked
	@touch $@

.PHONY: run
run: build ## Run the notifier in the foreground, with private servers; Ctrl-C stops all
	@$(WITH) scripts/run.sh $(BINARY)

.PHONY: migrate
migrate: build ## Create or update the tables; for the installed service: ENV_FILE=/etc/webhook-notifier.env
	@$(RUNNING) migrate $(SETTINGS)

.PHONY: check
check: build ## Say what is missing, and how to fix it; ENV_FILE=… works here and below, too
	@$(RUNNING) check $(SETTINGS)

.PHONY: webhooks
webhooks: build ## List the webhooks
	@$(RUNNING) webhooks list $(SETTINGS)

.PHONY: webhook-add
webhook-add: build ## Register a webhook: make webhook-add URL=http://… EVENTS='user.* order.paid'
	@set -f; $(RUNNING) webhooks add "$(URL)" $(EVENTS) $(SETTINGS)

.PHONY: publish
publish: build ## Publish a sample event: make publish QUEUE=high_priority TYPE=user.created
	@$(RUNNING) publish "$(QUEUE)" --type "$(TYPE)" $(SETTINGS)

.PHONY: dead-letters
dead-letters: build ## List what could not be delivered: make dead-letters [ARGS='show --limit 1']
	@$(RUNNING) dead-letters $(or $(ARGS),list) $(SETTINGS)

.PHONY: replay
replay: build ## Send dead letters to their webhooks again: make replay [ARGS='--webhook ID --dry-run']
	@$(RUNNING) dead-letters replay $(ARGS) $(SETTINGS)

.PHONY: move-queue
move-queue: build ## Change a queue's type: make move-queue QUEUE=high_priority [TO=quorum]
	@$(RUNNING) queues move "$(QUEUE)" $(if $(TO),--to "$(TO)") $(ARGS) $(SETTINGS)

.PHONY: listen
listen: build ## Run a receiver: make listen ADDR=127.0.0.1:8080
	@$(BINARY) listen --addr "$(ADDR)"

##@ Install it, as a systemd service
.PHONY: install
install: build ## Install binary, units, manual and /etc/webhook-notifier.env: [PREFIX=/usr/local] [DESTDIR=…]
	@$(INSTALL) install "$(BINARY)"

.PHONY: uninstall
uninstall: ## Remove the installed files, except /etc/webhook-notifier.env
	@$(INSTALL) uninstall

.PHONY: start
start: ## Start the installed service, now and at every boot
	@$(INSTALL) start

.PHONY: stop
stop: ## Stop it gracefully
	@$(INSTALL) stop

.PHONY: restart
restart: ## Stop it, and start the version that is installed now
	@$(INSTALL) restart

.PHONY: status
status: ## Show whether it runs, and what it waits for
	@$(INSTALL) status

.PHONY: logs
logs: ## Follow its log: make logs [ARGS='--since -1h']
	@$(INSTALL) logs $(ARGS)

##@ Private servers (RabbitMQ and PostgreSQL, all their files under .local/)
.PHONY: services-up
services-up: ## Start them
	@$(SERVICES) up && $(SERVICES) env

.PHONY: services-down
services-down: ## Stop them
	@$(SERVICES) down

##@ Work on it
.PHONY: ci
ci: fmt-check ## Run exactly what CI runs: fmt-check, shellcheck, lint, doc and test
	@BESIDE='$(MAKE) shellcheck lint doc' $(MAKE) test T=

.PHONY: chaos
chaos: DURATION ?= 3m
chaos: RATE ?= 100
chaos: build ## Break everything under load, account for every event: DURATION=3m RATE=100 SEED=… CLUSTER=yes
	@DURATION=$(DURATION) RATE=$(RATE) SEED=$(SEED) CLUSTER=$(CLUSTER) scripts/chaos.sh $(BINARY) chaos

.PHONY: soak
soak: DURATION ?= 10m
soak: RATE ?= 50
soak: build ## Steady load with failing receivers: nothing may grow: DURATION=10m RATE=50 SEED=…
	@DURATION=$(DURATION) RATE=$(RATE) SEED=$(SEED) scripts/chaos.sh $(BINARY) soak

.PHONY: drain-kill
drain-kill: KILLS ?= 10
drain-kill: build ## Kill notifier, broker or both while a backlog drains: KILLS=10 EVENTS=3000 SEED=…
	@KILLS=$(KILLS) EVENTS=$(EVENTS) SEED=$(SEED) scripts/chaos.sh $(BINARY) drain-kill

.PHONY: test-versions
test-versions: ## Test with other versions of RabbitMQ and PostgreSQL: [VERSIONS='trixie bookworm+bullseye']
	@scripts/test-versions.sh $(VERSIONS)

.PHONY: bench
bench: build ## Measure the notifier beside a bare loop: [SCENARIO='tuned isolation'] [ROUNDS=5]
	@scripts/bench.sh $(BINARY) $(SCENARIO)

.PHONY: fmt-check
fmt-check: ## Check the formatting
	cargo fmt --check

.PHONY: lint
lint: ## Run Clippy, with every warning as an error
	cargo clippy --locked --all-targets -- -D warnings

# Every file with a shell's shebang; the files that it sources are checked with it.
.PHONY: shellcheck
shellcheck: ## Run shellcheck on all scripts; as root, install it if it is missing
	@scripts/install-tools.sh shellcheck:shellcheck
	@find . \( -name .git -o -name .local -o -name target \) -prune -o -type f -exec \
	  awk 'FNR == 1 && /^#!.*sh$$/ { print FILENAME } { nextfile }' {} + | \
	  xargs shellcheck --external-sources --check-sourced

.PHONY: deny
deny: $(CARGO_DENY) ## Check the dependencies' advisories, licences, sources and versions (.deny.toml)
	@$(CARGO_DENY) check

$(CARGO_DENY):
	cargo install --locked --version $(CARGO_DENY_VERSION) --root $(CARGO_DENY_ROOT) cargo-deny

.PHONY: doc
doc: ## Build the code's documentation: target/doc/webhook_notifier
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
