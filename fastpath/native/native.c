// SPDX-License-Identifier: GPL-2.0-only
/*
 * native: the fastpath as an ordinary program, with no kernel below it
 *
 * Theory of operation
 * ===================
 *
 *      fuzz_frame.c    fuzz_conversation.c          tests/support/native.py
 *             \             /                        (vfr/kernel/fastpath.py, unchanged)
 *            @native_run, oracle.c                          |  @native_bpf = bpf(2)
 *                   |                                       |
 *      +------------v---------------------------------------v-----------+
 *      | fastpath/vfr.bpf.c and its headers, unchanged                  |
 *      |     #include <bpf/bpf_helpers.h>  -> native/include/bpf        |
 *      +------------|---------------------------------------------------+
 *                   v
 *         maps.c (maps)      skb.c (the packet, the clock, chance, sockets)
 *
 * The very same stages are compiled for this machine, by clang with AddressSanitizer and
 * UndefinedBehaviorSanitizer. This finds what the verifier does not look for: it proves that no access is
 * out of bounds, but not that the right bytes are meant, and it trusts what a callback or a deleted
 * element leaves behind. And it runs a million packets in the time in which BPF_PROG_TEST_RUN does ten
 * thousand, with a clock that can be set.
 *
 * Three things make an ordinary program of BPF:
 *   - `struct __sk_buff` holds 32-bit addresses, so the packet lies in memory below 4 GiB, poisoned all
 *     round the linear part (skb.c);
 *   - a program names a map by the address of its declaration, whose first member is a pointer that only
 *     carries a type. @native_init puts the emulated map there. Sizes come from maps.inc, which
 *     tools/gen_native_maps.py writes from vfr/_abi.py: a map that is not declared stops the first helper
 *     that meets it, and a test compares the two lists;
 *   - `const volatile` settings are read-only memory, and @native_set opens it for a moment.
 *
 * What differs from the kernel: one CPU, nothing concurrent (so no compare-and-swap ever fails), no
 * verifier, an allocation fails only where native_frame.fail_at says so, and the order of elements in a
 * hash is another. bpf_redirect and its kin only note down what they were told.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../vfr.bpf.c"
#include "kernel.h"

void native_stop(const char *file, int line, const char *condition, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "%s:%d: not (%s): ", file, line, condition);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	abort();
}

void native_set(const volatile void *setting, size_t size, __u64 value)
{
	unsigned long page = sysconf(_SC_PAGESIZE), from = (unsigned long)setting & ~(page - 1);
	unsigned long length = (unsigned long)setting + size - from;

	native_check(!mprotect((void *)from, length, PROT_READ | PROT_WRITE), "mprotect");
	__builtin_memcpy((void *)setting, &value, size); /* little-endian */
	native_check(!mprotect((void *)from, length, PROT_READ), "mprotect");
}

void native_kernel_context(bool readable)
{
	if (kernel_context != readable)
		native_set(&kernel_context, sizeof(kernel_context), readable);
}

void native_init(void)
{
	static bool done;

	if (done)
		return;
	done = true;
#define MAP(name, type, key_size, value_size, max_entries, flags) \
	native_declare(&name, #name, type, key_size, value_size, max_entries, flags);
#include "maps.inc"
#undef MAP
	native_set(&tracing, sizeof(tracing), 1);
}

void native_run(const struct native_frame *frame, struct native_result *result)
{
	__u32 zero = 0;
	struct vfr_trace *end = bpf_map_lookup_elem(&trace, &zero);

	skb_begin(frame, gateway_mac);
	if (!kernel_context)
		witness(bpf_cast_to_kern_ctx(skb_context()), bpf_map_lookup_elem(&offload, &zero));
	*end = (struct vfr_trace){ .verdict = VFR_CONTINUE };
	*result = (struct native_result){};
	result->action = frame->hook == NATIVE_UPLINK ? uplink_ingress(skb_context())
			 : frame->hook == NATIVE_SORTER ? sorter_ingress(skb_context())
							: vif_ingress(skb_context());
	skb_end(result);
	result->verdict = end->verdict;
	result->row = end->row;
	result->target = end->target;
}

void native_sweep(__u32 row)
{
	const __u8 empty[64] = {};
	struct native_frame frame = { .data = empty, .length = sizeof(empty), .mark = row };
	struct native_result result;

	skb_begin(&frame, gateway_mac);
	sweep_row(skb_context());
	skb_end(&result);
}

#ifdef VFR_OFFLOAD_H
/* The kernel's own sk_buff, as much of it as offload.h declares. */
void *bpf_cast_to_kern_ctx(void *context)
{
	static struct sk_buff view;
	void *head, *data;

	view.ip_summed = skb_kernel_view(&head, &data, &view.csum_start, &view.csum_offset) ? CHECKSUM_PARTIAL : 0;
	view.head = head;
	view.data = data;
	return &view;
}
#endif
