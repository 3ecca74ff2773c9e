# Thin targets over cargo and the rig (e2e). The rig installs Debian packages that are missing, as root or with sudo,
# and says so; what is slow to make is kept in $FAIRLEAD_CACHE (default ~/.cache/fairlead). Clusters need root.

CARGO ?= cargo
# the features of all tests, so that cargo builds the rig once for all
RIG_FEATURES := --package fairlead-e2e --features machine,cluster
RIG := $(CARGO) run --quiet $(RIG_FEATURES) --bin rig --

.DEFAULT_GOAL := help
.PHONY: help demo cluster test test-cluster image generate lint bench clean toolchain root

# $(call stage,name,command): runs the command and prints how long it took
define stage
@echo "==> $(1)"; begin=$$(date +%s); $(2) || { echo "==> $(1): FAILED after $$(($$(date +%s) - begin)) s"; exit 1; }; \
	echo "==> $(1): $$(($$(date +%s) - begin)) s"
endef

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: toolchain ## real traffic through real IPVS, step by step, without a cluster (10 minutes at most)
	@echo "The demo boots a machine with Debian's kernel. Missing Debian packages are installed: as root, or with sudo."
	$(CARGO) run --release --package fairlead-e2e --bin demo

cluster: toolchain root ## a real cluster of three IPVS machines with Fairlead on it; it stays up
	$(CARGO) build --quiet $(RIG_FEATURES) --bins
	target/debug/tour --rig $(CURDIR)/target/debug/rig

test: toolchain root ## all tests that end within half an hour: on this host, on a real IPVS kernel, on a real control plane
	$(call stage,unit tests,$(CARGO) test --quiet --workspace)
	$(call stage,guest tests,$(RIG) test)
	$(call stage,control plane tests,$(CARGO) test --quiet $(RIG_FEATURES) --test control_plane -- --test-threads=2)

test-cluster: toolchain root ## the operator on a real API server, nodes, and a real cluster of three machines
	$(call stage,operator tests,$(CARGO) test --quiet $(RIG_FEATURES) --test agent_and_api --test operator -- --test-threads=2)
	$(call stage,node tests,$(CARGO) test --quiet $(RIG_FEATURES) --test power --test nodes -- --test-threads=1)
	$(call stage,cluster tests,$(RIG) cluster test)

image: toolchain ## the image of operator and agent, as an OCI archive, and its digest
	@$(RIG) image

generate: ## writes the generated files (CRDs)
	$(CARGO) run --quiet --package fairlead-crds --bin crdgen

lint: ## format, clippy with warnings as errors, generated files up to date
	$(call stage,format,$(CARGO) fmt --all --check)
	$(call stage,clippy,$(CARGO) clippy --quiet --workspace --all-targets --all-features -- -D warnings)
	$(call stage,generated files,$(CARGO) run --quiet --package fairlead-crds --bin crdgen -- --check)

bench: toolchain ## benchmarks, on a real IPVS kernel
	@echo "Missing Debian packages are installed: as root, or with sudo."
	$(CARGO) build --quiet --package fairlead-e2e --features machine --bins
	target/debug/bench

clean: ## takes the cluster down and removes what cargo built; the cache stays
	@[ ! -x target/debug/rig ] || target/debug/rig cluster down
	$(CARGO) clean

# A cluster's namespaces, mounts and devices are root's.
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) needs root for the namespaces of its clusters: run it with sudo -E"; exit 1; }

# Rust links with cc, which a fresh Debian lacks.
toolchain:
	@command -v cc >/dev/null || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		echo "cc is missing: $$sudo apt-get install gcc libc6-dev"; \
		$$sudo apt-get update -q && $$sudo apt-get install -q -y --no-install-recommends gcc libc6-dev; }
