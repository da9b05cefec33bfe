# The fastpath built natively, for fuzzing and for differential tests; see fastpath/native/README.md.
.DEFAULT_GOAL := all
# `make native` builds all, `make fuzz` runs both fuzzers (FUZZ_SECONDS each), `make corpus` renews the corpus.

NATIVE       := fastpath/native
NATIVE_BUILD := build/native
FUZZ_SECONDS ?= 600
FUZZERS      := $(NATIVE_BUILD)/fuzz_frame $(NATIVE_BUILD)/fuzz_conversation
NATIVE_CORE  := $(NATIVE)/native.c $(NATIVE)/maps.c $(NATIVE)/skb.c
NATIVE_DEPS  := $(wildcard $(NATIVE)/*.[ch] $(NATIVE)/include/bpf/*.h) fastpath/vfr.bpf.c $(HEADERS) $(NATIVE_BUILD)/maps.inc
# BPF loads may be unaligned, so misalignment is no fault. What libbpf's macros make of callbacks neither.
NATIVE_FLAGS := -std=gnu11 -g -fno-omit-frame-pointer -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
                -I$(NATIVE)/include -I$(NATIVE_BUILD)
SANITIZERS   := -fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all

.PHONY: native fuzz corpus

$(NATIVE_BUILD)/maps.inc: vfr/_abi.py tools/gen_native_maps.py
	@mkdir -p $(NATIVE_BUILD)
	$(PYTHON) tools/gen_native_maps.py > $@

$(NATIVE_BUILD)/libvfrnative.so: $(NATIVE_DEPS) | packages
	$(CLANG) $(NATIVE_FLAGS) -O2 -shared -fPIC -Wl,-Bsymbolic $(NATIVE_CORE) -o $@

$(NATIVE_BUILD)/world.log: $(NATIVE_BUILD)/libvfrnative.so tests/support/native.py tests/support/native_world.py \
                           tests/support/world.py tests/support/policies.py vfr/kernel/fastpath.py \
                           $(wildcard vfr/policy/*.py vfr/policy/*.lark) | $(VENV)/.installed
	cd tests && ../$(VENV)/bin/python -m support.native_world $(abspath $@)

$(FUZZERS): $(NATIVE_BUILD)/fuzz_%: $(NATIVE_DEPS) $(NATIVE_BUILD)/world.log
	$(CLANG) $(NATIVE_FLAGS) -O1 $(SANITIZERS) -fsanitize=fuzzer -DWORLD_LOG='"$(abspath $(NATIVE_BUILD)/world.log)"' \
	    $(NATIVE_CORE) $(addprefix $(NATIVE)/,world.c frames.c meter.c oracle.c fuzz_$*.c) -o $@

native: $(NATIVE_BUILD)/libvfrnative.so $(FUZZERS)

# Both fuzzers in turn, each for FUZZ_SECONDS; what they find that is new stays in build/native/corpus. A
# finding lies in build/native/crash-*; VFR_SAY=1 makes a fuzzer print the packets of an input.
fuzz: $(FUZZERS)
	@for fuzzer in $(FUZZERS); do \
	    name=$${fuzzer##*fuzz_}; mkdir -p $(NATIVE_BUILD)/corpus/$$name; \
	    $$fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=1600 -timeout=10 -print_final_stats=1 \
	        -artifact_prefix=$(NATIVE_BUILD)/ $(NATIVE_BUILD)/corpus/$$name $(NATIVE)/corpus/$$name || exit 1; done

# The committed corpus anew: the packet table, and of it and all that was found what reaches more.
corpus: $(FUZZERS)
	cd tests && ../$(VENV)/bin/python -m support.native_corpus ../$(NATIVE_BUILD)/seeds
	for name in frame conversation; do \
	    mkdir -p $(NATIVE_BUILD)/corpus/$$name $(NATIVE_BUILD)/least/$$name && \
	    $(NATIVE_BUILD)/fuzz_$$name -merge=1 -use_counters=0 $(NATIVE_BUILD)/least/$$name $(NATIVE_BUILD)/seeds/$$name \
	        $(NATIVE_BUILD)/corpus/$$name $(NATIVE)/corpus/$$name && \
	    rm -rf $(NATIVE)/corpus/$$name && mkdir -p $(NATIVE)/corpus && \
	    mv $(NATIVE_BUILD)/least/$$name $(NATIVE)/corpus/$$name || exit 1; done
