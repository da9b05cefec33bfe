/* SPDX-License-Identifier: GPL-2.0-only */
/* frames: what fuzzers build, answer and repair. Addresses are in host order. */
#ifndef NATIVE_FRAMES_H
#define NATIVE_FRAMES_H

#include "kernel.h"

struct frame_plan {
	__u32 src, dst;
	__u8 protocol, ttl;
	__u8 flags;                  /* of TCP; of ICMP the type */
	__u16 sport, dport;          /* of an ICMP query, sport is the identifier */
	__u16 load;                  /* bytes after the L4 header */
	__u16 id, fragment;          /* the IP header's; a later fragment has `load` bytes and a header's more */
};

enum frame_checksum { CHECKSUM_NONE_AT_ALL, CHECKSUM_RIGHT, CHECKSUM_WRONG };

/* Each returns the frame's length, 0 if there is nothing to be made. `out` has NATIVE_FRAME_MAX. */
__u32 frame_build(const struct frame_plan *plan, const __u8 mac[6], __u8 *out);
__u32 frame_ether(const __u8 to[6], const __u8 from[6], __u16 ethertype, __u32 load, __u8 *out);
__u32 frame_answer(const __u8 *delivered, __u32 length, const __u8 mac[6], __u8 flags, __u8 *out);
__u32 frame_icmp_error(const __u8 *delivered, __u32 length, const __u8 mac[6], __u8 type, __u8 code, __u8 *out);

/* Makes the checksums of IP, TCP, UDP and ICMP right, wherever the frame has room for them. With `partial`
 * the L4 one becomes what it is before its completion: the pseudo header's alone. */
void frame_repair(__u8 *frame, __u32 length, bool partial);

bool frame_is_ip(const __u8 *frame, __u32 length);
enum frame_checksum frame_ip_checksum(const __u8 *frame);
enum frame_checksum frame_l4_checksum(const __u8 *frame, __u32 length, bool partial);
/* Where the L4 checksum is, from the frame's start; 0 if there is none. */
__u32 frame_checksum_at(const __u8 *frame, __u32 length);

#endif
