# Flatnet. `make demo` and `make test` need Debian or Ubuntu, Rust (rustup.rs) and make; the rest they install.

CARGO ?= cargo
# One profile and one set of features for all that is built to be tested (agent/Cargo.toml says why).
PROFILE = --profile tested
TESTED = target/tested
TESTING = $(PROFILE) --features flatnet-agent/testing,flatnet-controlplane/testing
BUILD_TESTED = $(CARGO) build $(TESTING) -p flatnet-agent -p flatnet-controlplane

.PHONY: help build release demo test unit e2e lint fmt setup

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: setup ## Build everything, unoptimised
	$(CARGO) build --workspace --all-targets

release: setup ## Build agent and control plane as they are shipped, in target/release
	$(CARGO) build --release -p flatnet-agent -p flatnet-controlplane

demo: setup ## Three hosts, three containers, one flat network, on this machine; no root needed
	$(CARGO) build -p flatnet-agent -p flatnet-controlplane
	target/debug/agent lab demo

test: unit with-simulation ## All tests

.PHONY: with-simulation real-time
# The simulation runs only while a processor has nothing else to do (SCHED_IDLE, sched(7)), so what wants real time does not
# feel it. What it says comes at its end, not between the others' lines.
IDLE := $(shell chrt --idle 0 true 2>/dev/null && echo chrt --idle 0 || echo nice -n 19)
with-simulation:
	@mkdir -p target; $(IDLE) $(MAKE) --no-print-directory simulation >target/simulation.log 2>&1 & simulation=$$!; \
	$(MAKE) --no-print-directory real-time; real_time=$$?; \
	wait $$simulation; simulation=$$?; cat target/simulation.log; exit $$((real_time | simulation))

real-time: e2e hostile faults cluster-short soak-short

unit: setup ## Unit, property and conformance tests
	$(CARGO) test $(TESTING) --workspace --exclude flatnet-tests --no-fail-fast -- --skip $(SYSTEM)
	$(CARGO) test $(PROFILE) -p flatnet-tests --lib

e2e: setup ## Real agents, a real etcd, real packets, in network namespaces
	$(BUILD_TESTED)
	$(CARGO) test $(PROFILE) -p flatnet-tests --no-fail-fast --test e2e --test doctor

.PHONY: faults
faults: setup ## Every fault of docs/reliability.md done to a running overlay; prints the figures
	$(BUILD_TESTED)
	$(CARGO) test $(PROFILE) -p flatnet-tests --test faults

.PHONY: cluster cluster-short

CLUSTER_SECS ?= 300
cluster: setup ## An etcd of three, two servers, nodes that come and go, and every fault for CLUSTER_SECS (300); prints the figures
	$(BUILD_TESTED)
	CLUSTER_SECS=$(CLUSTER_SECS) $(CARGO) test $(PROFILE) -p flatnet-tests --test cluster

cluster-short: # every fault once, for every change
	@$(MAKE) --no-print-directory cluster CLUSTER_SECS=0

.PHONY: simulation

# The name of its test.
SYSTEM = with_servers_between_too
SIMULATION_SEEDS ?= 1000
simulation: setup ## Agents, servers, store and network under faults in paused time, SIMULATION_SEEDS (1,000) times
	FLATNET_SYSTEM_SEEDS=$(SIMULATION_SEEDS) $(CARGO) test $(TESTING) --workspace --exclude flatnet-tests --test model $(SYSTEM)

.PHONY: soak soak-short

SOAK_SECS ?= 600
soak: setup ## Twenty agents and a fault every second for SOAK_SECS (600): exact afterwards, and nothing leaked
	$(BUILD_TESTED)
	SOAK_SECS=$(SOAK_SECS) $(CARGO) test $(PROFILE) -p flatnet-tests --test soak

soak-short: # a minute of it, for every change
	@$(MAKE) --no-print-directory soak SOAK_SECS=60

.PHONY: hostile fuzz

hostile: setup ## Hostile frames at real agents: what strangers, lying peers and containers send comes out of no tunnel
	$(BUILD_TESTED)
	$(CARGO) test $(PROFILE) -p flatnet-tests --test hostile

FUZZ_SECS ?= 300
fuzz: setup ## Every parser with libFuzzer, FUZZ_SECS (300) each; `make unit` has a short run
	tests/fuzz/run $(FUZZ_SECS)

.PHONY: bench
bench: setup ## How fast, how big, beside `ip -batch` and flannel's figures: prints the table of docs/benchmarks.md
	$(CARGO) build --release -p flatnet-agent
	FLATNET_AGENT=target/release/agent $(CARGO) bench -p flatnet-tests --bench scale
	$(CARGO) bench -p flatnet-tests --bench store

.PHONY: bench-controlplane
bench-controlplane: setup ## A thousand agents at one control plane before an etcd; the embedded store beside its disk
	$(CARGO) bench -p flatnet-controlplane --bench fleet

lint: ## Formatting, clippy, documentation, dependency rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(TESTING) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(PROFILE) -p flatnet-agent -p flatnet-controlplane -- -D warnings # as shipped: without what tests need
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then \
		$(CARGO) deny check bans licenses sources; \
	else \
		echo "NOT CHECKED: dependency rules (deny.toml): cargo-deny is not installed; cargo install cargo-deny" >&2; \
	fi

.PHONY: requirements
requirements: ## Make docs/requirements.md from the names of the tests
	FLATNET_WRITE=1 $(CARGO) test $(PROFILE) -p flatnet-tests --lib requirements

fmt: ## Format the sources
	$(CARGO) fmt --all

setup: ## Install what is missing (Debian, Ubuntu)
	@.ci/setup

.PHONY: static install deb

# The program that `install` installs: `make release` or `make static` makes it, so that `sudo make install` compiles nothing.
AGENT ?= target/release/agent
CONTROLPLANE ?= target/release/controlplane
STATIC_TARGET ?= $(shell uname -m)-unknown-linux-gnu
STATIC_AGENT = target/$(STATIC_TARGET)/release/agent

# A --target of its own keeps the flag away from build scripts and procedural macros.
static: setup ## Build the agent as one file that runs on every Linux of this architecture
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release -p flatnet-agent --target $(STATIC_TARGET)

install: ## Install AGENT with its service and manual: DESTDIR=, PREFIX=/usr/local
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" agent/packaging/install "$(AGENT)"

.PHONY: install-controlplane deb-controlplane
install-controlplane: ## Install CONTROLPLANE with its service: DESTDIR=, PREFIX=/usr/local
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" controlplane/packaging/install "$(CONTROLPLANE)"

deb-controlplane: setup ## Make a Debian package of the control plane in target/
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release -p flatnet-controlplane --target $(STATIC_TARGET)
	controlplane/packaging/deb target/$(STATIC_TARGET)/release/controlplane target

deb: static ## Make a Debian package in target/
	agent/packaging/deb "$(STATIC_AGENT)" target

.PHONY: test-package
test-package: deb ## Install the package in a clean Debian and boot it (root, debootstrap, systemd-nspawn)
	agent/packaging/test target/flatnet-agent_*.deb

.PHONY: setup-vm vm-image test-vm

# What virtual machines boot from is made once for every list of packages, and kept there.
VM_DIR ?= target/vm
# The agent of the other tests, linked once more so that it runs on any Debian: nothing else is compiled a second time. The
# control plane is as it is: built alone it would be, with 60 of what it stands on; this machine must not be newer than Debian 12.
# What is shipped is built by `make deb`; `make test-package` installs that.
STATICALLY = -C target-feature=+crt-static -C strip=symbols

setup-vm: setup ## Install what virtual machines need besides
	@.ci/setup vm

vm-image: setup-vm ## Make the virtual machines' kernel and root file system (root; Debian)
	$(CARGO) rustc $(PROFILE) -p flatnet-guest --bin guest -- $(STATICALLY)
	tests/vm/image $(VM_DIR) $(TESTED)/guest

test-vm: vm-image ## In virtual machines: Debian's kernel, bad lines, reboots, the installed package (root)
	$(BUILD_TESTED)
	strip -o $(VM_DIR)/controlplane $(TESTED)/controlplane
	controlplane/packaging/deb $(VM_DIR)/controlplane $(VM_DIR)
	$(CARGO) rustc $(PROFILE) -p flatnet-agent --features testing --bin agent -- $(STATICALLY)
	install -m 755 $(TESTED)/agent $(VM_DIR)/agent
	agent/packaging/deb $(VM_DIR)/agent $(VM_DIR)
	FLATNET_AGENT=$(abspath $(VM_DIR)/agent) FLATNET_VM_DIR=$(abspath $(VM_DIR)) \
		FLATNET_DEB=$$(ls -t $(abspath $(VM_DIR))/flatnet-agent_*.deb | head -n 1) \
		FLATNET_CONTROLPLANE_DEB=$$(ls -t $(abspath $(VM_DIR))/flatnet-controlplane_*.deb | head -n 1) \
		$(CARGO) test $(PROFILE) -p flatnet-tests --test vm

.PHONY: vagrant-validate
vagrant-validate: ## Check the Vagrantfiles (vagrant)
	@if command -v vagrant >/dev/null; then \
		for lab in vagrant/*/Vagrantfile; do \
			VAGRANT_CWD=$$(dirname $$lab) VAGRANT_HOME=$(CURDIR)/target/vagrant VAGRANT_DOTFILE_PATH=$(CURDIR)/target/vagrant/dot \
				VAGRANT_CHECKPOINT_DISABLE=1 vagrant validate --ignore-provider || exit 1; \
		done; \
	else \
		echo "NOT CHECKED: Vagrantfiles: vagrant is not installed (Debian: apt-get install vagrant)" >&2; \
	fi
