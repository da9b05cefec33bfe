/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * world: the router that fuzzers talk to, the one of tests/support/world.py.
 *
 * The control plane itself made it (tests/support/native_world.py) while native_record wrote down each
 * change of a map. The first segment of the recording is the world, each one after it a change of policy;
 * they go round.
 */
#ifndef NATIVE_WORLD_H
#define NATIVE_WORLD_H

#include "kernel.h"

#define WORLD_SLOTS 4
#define WORLD_LAN 0xfffe /* a sender: the uplink */
#define WORLD_SORTER 0x10000 /* another: what the sorter gives back */
#define WORLD_UPLINK_IFINDEX 100
#define WORLD_SORTER_IFINDEX 101
#define WORLD_START 1000000000000000ULL

void world_reset(void);
void world_next_policy(void);
/* A frame's interface and program, by its sender: a slot, WORLD_LAN, or WORLD_SORTER. */
void world_send(struct native_frame *frame, __u32 sender);

#endif
