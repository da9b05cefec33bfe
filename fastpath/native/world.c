// SPDX-License-Identifier: GPL-2.0-only
#include "../vfr_abi.h"
#include <bpf/bpf_helpers.h>
#include "world.h"

extern const __u8 world_log[], world_log_end[];

__asm__(".section .rodata\n"
	".global world_log, world_log_end\n"
	"world_log: .incbin \"" WORLD_LOG "\"\n"
	"world_log_end:\n"
	".previous\n");

const char *__asan_default_options(void);
static const __u8 *first_policy, *next_policy;

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
	first_policy = next_policy = native_replay(world_log, world_log_end);
}

/* The recorded numbers of policies begin anew each round; here each policy has a number of its own. */
void world_next_policy(void)
{
	static __u32 number = 1000;
	__u32 zero = 0;
	struct vfr_config *row;

	next_policy = native_replay(next_policy < world_log_end ? next_policy : first_policy, world_log_end);
	row = bpf_map_lookup_elem(native_map_named("config"), &zero);
	row->policy = ++number;
}

void world_send(struct native_frame *frame, __u32 sender)
{
	frame->hook = sender == WORLD_LAN ? NATIVE_UPLINK : sender == WORLD_SORTER ? NATIVE_SORTER : NATIVE_VIF;
	frame->ifindex = sender == WORLD_LAN ? WORLD_UPLINK_IFINDEX
			 : sender == WORLD_SORTER ? WORLD_SORTER_IFINDEX : sender + 1;
}
