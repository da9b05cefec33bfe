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
