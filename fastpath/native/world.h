/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * world: the router that fuzzers talk to, the one of tests/support/world.py.
 *
 * The control plane itself made it (tests/support/native_world.py) while native_record wrote down each
 * change of a map. The first segment of the recording is the world, each one after it a change of policy;
 * they go round. What each policy says by definition was written beside it.
 */
#ifndef NATIVE_WORLD_H
#define NATIVE_WORLD_H

#include "kernel.h"

#define WORLD_SLOTS 4
#define WORLD_ETHERTYPES 8
#define WORLD_LAN 0xfffe /* a sender: the uplink */
#define WORLD_SORTER 0x10000 /* another: what the sorter gives back */
#define WORLD_UPLINK_IFINDEX 100
#define WORLD_SORTER_IFINDEX 101
#define WORLD_START 1000000000000000ULL

/* Of an opener and a target: a bit for each IP protocol of which something may be opened, and the EtherTypes that may
 * be sent, up to a 0. */
struct world_truth {
	__u8 protocols[WORLD_SLOTS][WORLD_SLOTS][32];
	__u16 ethertypes[WORLD_SLOTS][WORLD_SLOTS][WORLD_ETHERTYPES];
};

void world_reset(void);
void world_next_policy(void);
/* What the rules in force say by definition. */
bool world_may_open(__u32 opener, __u32 target, __u8 protocol);
bool world_may_send(__u32 from, __u32 to, __u16 ethertype);
/* A frame's interface and program, by its sender: a slot, WORLD_LAN, or WORLD_SORTER. */
void world_send(struct native_frame *frame, __u32 sender);

#endif
