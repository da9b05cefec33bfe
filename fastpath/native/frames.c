// SPDX-License-Identifier: GPL-2.0-only
#include <string.h>
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include "frames.h"

#define L4 34
#define ICMP_HEADER 8
#define ICMP_TIMESTAMP 13
#define QUOTED 28 /* an IP header and eight bytes */

static const __u8 gateway[6] = { 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff };

static __u16 load16(const __u8 *at)
{
	return at[0] << 8 | at[1];
}

static void store16(__u8 *at, __u16 value)
{
	at[0] = value >> 8;
	at[1] = (__u8)value;
}

static void store32(__u8 *at, __u32 value)
{
	store16(at, value >> 16);
	store16(at + 2, (__u16)value);
}

static __u32 sum(const __u8 *at, __u32 length, __u32 start)
{
	__u64 total = start;

	for (__u32 i = 0; i + 1 < length; i += 2)
		total += load16(at + i);
	if (length & 1)
		total += at[length - 1] << 8;
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return (__u32)total;
}

bool frame_is_ip(const __u8 *frame, __u32 length)
{
	return length >= L4 && load16(frame + 12) == ETH_P_IP;
}

enum frame_checksum frame_ip_checksum(const __u8 *frame)
{
	return sum(frame + ETH_HLEN, 20, 0) == 0xffff ? CHECKSUM_RIGHT : CHECKSUM_WRONG;
}

static __u32 checksum_offset(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? 16 : protocol == IPPROTO_UDP ? 6 : protocol == IPPROTO_ICMP ? 2 : 0;
}

/* Bytes that the L4 checksum is about; 0 if there is no such checksum, or no room for it. */
static __u32 l4_length(const __u8 *frame, __u32 length)
{
	__u32 total, room, offset;

	if (!frame_is_ip(frame, length) || frame[14] != 0x45 || load16(frame + 20) & 0x3fff)
		return 0;
	total = load16(frame + 16);
	offset = checksum_offset(frame[23]);
	if (total < 20 || ETH_HLEN + total > length || !offset || total - 20 < offset + 2)
		return 0;
	room = total - 20;
	if (frame[23] == IPPROTO_UDP && load16(frame + L4 + 4) >= 8 && load16(frame + L4 + 4) < room)
		room = load16(frame + L4 + 4);
	return room;
}

__u32 frame_checksum_at(const __u8 *frame, __u32 length)
{
	return l4_length(frame, length) ? L4 + checksum_offset(frame[23]) : 0;
}

static __u32 pseudo_header(const __u8 *frame, __u32 room)
{
	return frame[23] == IPPROTO_ICMP ? 0 : sum(frame + 26, 8, frame[23] + room);
}

enum frame_checksum frame_l4_checksum(const __u8 *frame, __u32 length, bool partial)
{
	__u32 room = l4_length(frame, length), at;

	if (!room)
		return CHECKSUM_NONE_AT_ALL;
	at = L4 + checksum_offset(frame[23]);
	if (partial)
		return sum(NULL, 0, pseudo_header(frame, room)) % 0xffff == load16(frame + at) % 0xffff
			       ? CHECKSUM_RIGHT : CHECKSUM_WRONG;
	if (frame[23] == IPPROTO_UDP && !load16(frame + at))
		return CHECKSUM_NONE_AT_ALL;
	return sum(frame + L4, room, pseudo_header(frame, room)) == 0xffff ? CHECKSUM_RIGHT : CHECKSUM_WRONG;
}

void frame_repair(__u8 *frame, __u32 length, bool partial)
{
	__u32 room, at;
	__u16 fresh;

	if (!frame_is_ip(frame, length))
		return;
	store16(frame + 24, 0);
	store16(frame + 24, ~sum(frame + ETH_HLEN, 20, 0));
	room = l4_length(frame, length);
	if (!room)
		return;
	at = L4 + checksum_offset(frame[23]);
	store16(frame + at, 0);
	fresh = partial ? sum(NULL, 0, pseudo_header(frame, room)) : ~sum(frame + L4, room, pseudo_header(frame, room));
	store16(frame + at, fresh || frame[23] != IPPROTO_UDP ? fresh : 0xffff);
}

static void start(__u8 *out, const __u8 mac[6], __u32 src, __u32 dst, __u8 protocol, __u8 ttl, __u32 room)
{
	memcpy(out, gateway, 6);
	memcpy(out + 6, mac, 6);
	store16(out + 12, ETH_P_IP);
	memset(out + ETH_HLEN, 0, 20 + room);
	out[14] = 0x45;
	store16(out + 16, 20 + room);
	out[22] = ttl;
	out[23] = protocol;
	store32(out + 26, src);
	store32(out + 30, dst);
}

__u32 frame_build(const struct frame_plan *plan, const __u8 mac[6], __u8 *out)
{
	__u32 header = plan->protocol == IPPROTO_TCP ? 20 : 8, room = header + plan->load;

	start(out, mac, plan->src, plan->dst, plan->protocol, plan->ttl, room);
	store16(out + 18, plan->id);
	store16(out + 20, plan->fragment);
	if (plan->fragment & 0x1fff) { /* a later one: no L4 header */
		frame_repair(out, L4 + room, false);
		return L4 + room;
	}
	store16(out + L4, plan->sport);
	store16(out + L4 + 2, plan->dport);
	if (plan->protocol == IPPROTO_TCP) {
		out[L4 + 11] = plan->flags >> 4 & 1; /* sequence numbers are 0, so this acknowledges a SYN */
		out[L4 + 12] = 0x50;
		out[L4 + 13] = plan->flags;
	} else if (plan->protocol == IPPROTO_UDP)
		store16(out + L4 + 4, room);
	else if (plan->protocol == IPPROTO_ICMP) {
		store16(out + L4, plan->flags << 8);
		store16(out + L4 + 2, 0);
		store16(out + L4 + 4, plan->sport);
		store16(out + L4 + 6, 1);
	}
	frame_repair(out, L4 + room, false);
	return L4 + room;
}

__u32 frame_ether(const __u8 to[6], const __u8 from[6], __u16 ethertype, __u32 load, __u8 *out)
{
	memcpy(out, to, 6);
	memcpy(out + 6, from, 6);
	store16(out + 12, ethertype);
	memset(out + ETH_HLEN, 0x45, load);
	return ETH_HLEN + load;
}

static __u32 load32(const __u8 *at)
{
	return (__u32)load16(at) << 16 | load16(at + 2);
}

__u32 frame_answer(const __u8 *delivered, __u32 length, const __u8 mac[6], __u8 flags, __u8 *out)
{
	struct frame_plan plan = { .ttl = 64, .flags = flags };

	if (!frame_is_ip(delivered, length) || length < L4 + 8)
		return 0;
	plan.src = load32(delivered + 30);
	plan.dst = load32(delivered + 26);
	plan.protocol = delivered[23];
	plan.sport = load16(delivered + L4 + 2);
	plan.dport = load16(delivered + L4);
	if (plan.protocol == IPPROTO_ICMP) {
		plan.sport = load16(delivered + L4 + 4);
		plan.flags = delivered[L4] == ICMP_TIMESTAMP ? ICMP_TIMESTAMP + 1 : 0; /* the reply to it, or an echo reply */
	}
	return frame_build(&plan, mac, out);
}

__u32 frame_icmp_error(const __u8 *delivered, __u32 length, const __u8 mac[6], __u8 type, __u8 code, __u8 *out)
{
	if (!frame_is_ip(delivered, length) || length < ETH_HLEN + QUOTED)
		return 0;
	start(out, mac, load32(delivered + 30), load32(delivered + 26), IPPROTO_ICMP, 64, ICMP_HEADER + QUOTED);
	out[L4] = type;
	out[L4 + 1] = code;
	memcpy(out + L4 + ICMP_HEADER, delivered + ETH_HLEN, QUOTED);
	frame_repair(out, L4 + ICMP_HEADER + QUOTED, false);
	return L4 + ICMP_HEADER + QUOTED;
}
