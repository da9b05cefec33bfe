// SPDX-License-Identifier: GPL-2.0-only
#include "../vfr_abi.h"
#include <bpf/bpf_helpers.h>
#include "world.h"

extern const __u8 world_log[], world_log_end[];
extern const struct world_truth world_truths[], world_truths_end[];

__asm__(".section .rodata\n"
	".global world_log, world_log_end, world_truths, world_truths_end\n"
	"world_log: .incbin \"" WORLD_LOG "\"\n"
	"world_log_end:\n"
	".balign 2\n"
	"world_truths: .incbin \"" WORLD_LOG ".truth\"\n"
	"world_truths_end:\n"
	".previous\n");

const char *__asan_default_options(void);
static const __u8 *first_policy, *next_policy;
static const struct world_truth *truth;

/* A small quarantine for freed memory: what is freed here is used again at once, or never. */
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=4:malloc_context_size=8";
}

void world_reset(void)
{
	native_init();
	native_clock(WORLD_START);
	native_random(1, false);
	native_host_is_silent();
	/* Numbers of sets begin anew in a recording that meets a policy without any: none of a policy that an earlier
	 * input was broken off under may be left. */
	native_empty(native_map_named("port_sets"));
	native_empty(native_map_named("remotes"));
	truth = world_truths;
	first_policy = next_policy = native_replay(world_log, world_log_end);
}

/* The recorded numbers of policies begin anew each round; here each policy has a number of its own. */
void world_next_policy(void)
{
	static __u32 number = 1000;
	__u32 zero = 0;
	struct vfr_config *row;

	truth = truth + 1 < world_truths_end ? truth + 1 : world_truths;
	next_policy = native_replay(next_policy < world_log_end ? next_policy : first_policy, world_log_end);
	row = bpf_map_lookup_elem(native_map_named("config"), &zero);
	row->policy = ++number;
}

bool world_may_open(__u32 opener, __u32 target, __u8 protocol)
{
	return truth->protocols[opener][target][protocol / 8] & 1 << protocol % 8;
}

bool world_may_send(__u32 from, __u32 to, __u16 ethertype)
{
	const __u16 *kind = truth->ethertypes[from][to];

	while (*kind && *kind != ethertype)
		kind++;
	return *kind;
}

void world_send(struct native_frame *frame, __u32 sender)
{
	frame->hook = sender == WORLD_LAN ? NATIVE_UPLINK : sender == WORLD_SORTER ? NATIVE_SORTER : NATIVE_VIF;
	frame->ifindex = sender == WORLD_LAN ? WORLD_UPLINK_IFINDEX
			 : sender == WORLD_SORTER ? WORLD_SORTER_IFINDEX : sender + 1;
}
