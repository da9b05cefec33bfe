# VFR: `make lab` shows it working, `make test` runs everything, `make lab-down` leaves nothing behind.
# Needs a Debian 12 machine and root; what is missing is installed.

PYTHON   := /usr/bin/python3
VENV     := .venv
BUILD    := vfr/_build
CLANG    := clang-14
# Of stun-server only the program is used: Debian starts none unless /etc/default/stun says so.
PACKAGES := clang-14 llvm-14 libclang-rt-14-dev gcc make libc6-dev libbpf-dev bpftool nftables iproute2 python3 python3-venv \
            openssh-server openssh-client tcpdump iputils-ping iputils-arping procps ethtool util-linux \
            stun-client stun-server traceroute conntrack iptables vde2
# What the attack battery attacks with; macof is dsniff's, nping comes with nmap. Debian starts neither udhcpd
# (/etc/default/udhcpd) nor yersinia. tshark reads what `vfr capture` writes.
LAB_PACKAGES := dsniff hping3 nmap thc-ipv6 tshark udhcpc udhcpd yersinia isc-dhcp-client dhcpcd-base
VM_PACKAGES := qemu-system-x86 busybox-static cpio kmod
BPFFLAGS := -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter \
            -I/usr/include/$(shell uname -m)-linux-gnu
HEADERS  := $(wildcard fastpath/*.h)

include fastpath/native/native.mk

# Where systemd looks for units of the administrator's.
UNITDIR  := /etc/systemd/system
UNITS    := vfr.service vfr-online.service vfr-watch.service

.PHONY: install-units uninstall-units bench port-rate all packages vm-packages build abi lab lab-down test test-6.1 verifier check clean
all: build

# apt is asked only when something is missing, so that every other run is quick and needs no network.
packages:
	@$(call install,$(PACKAGES) $(LAB_PACKAGES))

# Without these tests/vm is skipped, by name, and the rest goes on.
vm-packages:
	@$(call install,$(VM_PACKAGES)) || echo "not to be had: some of $(VM_PACKAGES)"

define install
missing=$$(for p in $(1); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing $$missing" && apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; fi
endef

$(VENV)/.installed: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(BUILD)/%.bpf.o: fastpath/%.bpf.c $(HEADERS) | packages
	@mkdir -p $(BUILD)
	$(CLANG) $(BPFFLAGS) -c $< -o $@.tmp
	mv $@.tmp $@

$(BUILD)/libvfrload.so: fastpath/loader.c | packages
	@mkdir -p $(BUILD)
	gcc -shared -fPIC -pthread -O2 -Wall -Wextra -Werror -Wno-sign-compare $< -o $@.tmp -lbpf
	mv $@.tmp $@

# Compiled Python too, since where nothing may be written beside the source every command would compile it anew.
build: $(BUILD)/vfr.bpf.o $(BUILD)/witness.bpf.o $(BUILD)/libvfrload.so $(VENV)/.installed
	@$(VENV)/bin/python -m compileall -q vfr netns-lab/vfr_lab

abi: $(BUILD)/vfr.bpf.o
	tools/gen_abi.py $< > vfr/_abi.py
	tools/gen_verdicts.py > vfr/verdicts.py

lab: build
	$(VENV)/bin/vfr-lab up
	$(VENV)/bin/vfr-lab prove

lab-down: build
	$(VENV)/bin/vfr-lab down

check: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# The units run this tree's own `vfr`. Nothing is enabled or started by it: see docs/host.md.
install-units: build
	install -d $(DESTDIR)$(UNITDIR)
	@for unit in $(UNITS); do \
	    sed -e 's|@VFR@|$(CURDIR)/$(VENV)/bin/vfr|' -e 's|@TOP@|$(CURDIR)|' systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit && \
	    chmod 644 $(DESTDIR)$(UNITDIR)/$$unit && echo "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; done
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

uninstall-units:
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl disable --now $(UNITS) || true; fi
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# Two workers, each in a box of its own (tests/worker), a file of tests at a time. `pytest` alone does without.
WORKERS  := --tx '2*popen//python=tests/worker' --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: build native check vm-packages
	PYTHONPATH=tests $(VENV)/bin/python -m support.fetch
	$(VENV)/bin/pytest $(WORKERS)

# Debian 12's own kernel in QEMU: see tests/vm/README.md.
test-6.1: build vm-packages
	$(VENV)/bin/pytest -s tests/vm

# What this machine's verifier makes of the fastpath.
verifier: build
	$(VENV)/bin/python tools/verifier.py

# A minute of 2,000 connections a second through 1024 outside ports.
port-rate: build
	VFR_LONG=1 $(VENV)/bin/pytest -s tests/lab/test_port_rate.py

# Speed beside other backends, and what size costs: a quarter of an hour. BENCH="--plots docs/bench" draws it as well.
bench: build
	$(VENV)/bin/vfr-lab bench --json build/bench.json --markdown build/bench.md $(BENCH)

clean:
	rm -rf $(BUILD) build
