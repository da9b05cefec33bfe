/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * oracle: what must be true of every packet, whatever it is. Numbers are those of docs/design.md.
 *
 *   - it ends, under a name, and what the kernel is told fits that name (6);
 *   - no helper fails but where memory is made short, and the last gate before the LAN finds nothing (5);
 *   - exactly one counter is one higher: the sender's, under that name (10);
 *   - one that is dropped goes nowhere, one that is not ours is left as it was (2, 4);
 *   - what is delivered to a domain carries its MAC and its address, and never comes from itself (3);
 *   - who asks by DHCP is told no address but its own, by the router, and nobody else hears it (1, 3);
 *   - what leaves by the uplink carries the LAN address, and no address of the router's own (5);
 *   - raw Ethernet goes as it stands from one domain to the one whose MAC it is for, if the rules in force say so by
 *     definition, and never to a group (1, 2, 3);
 *   - of each IP protocol two domains exchange no more than the rules in force open, and the LAN gets none without
 *     ports (2, 5, 14); a later fragment goes by what the rules in force say of its first (14);
 *   - nothing else of a packet changes than what a router and NAT must change (11);
 *   - the TTL has fallen by one, and a checksum is right afterwards if, and only if, it was before (11);
 *   - nobody's table changes but those of sender and receiver; the receiver's loses and gains nothing, save
 *     that what the LAN opens lies in its inbound; and nobody's living state is lost to make room (7);
 *   - no more passes than the rates of sender and receiver allow, and nobody is dropped for one that has room: meter.h (7);
 *   - a living mapping has its outside port to itself, and no domain's ports change by another's packet (7).
 */
#ifndef NATIVE_ORACLE_H
#define NATIVE_ORACLE_H

#include "kernel.h"

/* Runs the frame of a sender (a slot, or WORLD_LAN) between two looks at the world. */
void oracle_run(struct native_frame *frame, __u32 sender, __u64 now, struct native_result *result);

#endif
