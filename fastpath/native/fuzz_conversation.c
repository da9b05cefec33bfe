// SPDX-License-Identifier: GPL-2.0-only
/*
 * A conversation: the input is a row of steps, each a byte for its kind and some for what it needs. Frames
 * are built from small alphabets of addresses and ports, so that they meet; what was delivered can be
 * answered, quoted in an ICMP error, or sent again; time passes; rules and rates change.
 */
#include <string.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include "frames.h"
#include "meter.h"
#include "oracle.h"
#include "../vfr_abi.h"
#include "world.h"

#define STEPS_MAX 60
#define HEARD_MAX 8
#define SECOND 1000000000ULL
#define PICK(array, number) ((array)[(number) % (sizeof(array) / sizeof(*(array)))])

enum kind { BUILT, ANSWER, RAW, TIME, RULES, ODD, ICMP_ERROR, HOST, FLOOD, PIECE, SORTED, SWEEP, ETHER, RATES, KINDS };

static const __u32 senders[] = { 0, 1, 2, 3, WORLD_LAN, WORLD_SORTER };
static const __u8 macs[][6] = { { 2, 0, 0, 0, 0, 0x10 }, { 2, 0, 0, 0, 0, 2 }, { 2, 0, 0, 0, 0, 3 },
				{ 2, 0, 0, 0, 0, 4 }, { 2, 0, 0, 0, 0, 0x11 } };
static const __u32 addresses[] = { 0xa9fe0100, 0xa9fe0102, 0xa9fe0103, 0xc612004d, 0xc000020b, 0xc000020c,
				   0xc6336409, 0xc0000201, 0xc00002ff, 0xa9fe0109, 0xa9fea9fe, 0xe0000001, 0x7f000001 };
static const __u16 ports[] = { 22, 53, 80, 2202, 2203, 3000, 5432, 16384, 16392, 16393, 16394, 16395, 16396, 16399,
			       16400, 16407, 16408, 20000, 32767, 40000, 50000 };
static const __u8 protocols[] = { 6, 17, 1, 6, 17, 132, 47, 50 };
static const __u8 tcp_flags[] = { 0x02, 0x12, 0x10, 0x11, 0x04, 0x01, 0x14, 0x00 };
static const __u8 icmp_types[] = { 8, 0, 3, 11, 5, 13, 14, 17 };
static const __u16 ethertypes[] = { 0x889a, 0x88a2, 0x88cc, 0x88b5, 0x05dc, 0x0600, 0x86dd, 0x8100, 0x0800, 0x0806 };
static const __u8 targets[][6] = { { 2, 0, 0, 0, 0, 0x10 }, { 2, 0, 0, 0, 0, 2 }, { 2, 0, 0, 0, 0, 3 },
				   { 2, 0, 0, 0, 0, 4 }, { 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff },
				   { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, { 3, 0, 0, 0, 0, 3 }, { 2, 0, 0, 0, 0, 0x77 } };
static const __u8 ttls[] = { 64, 64, 64, 2, 1, 0, 255 };
static const __u64 times[] = { 1000000, 900000000, SECOND, 2 * SECOND, 29 * SECOND, 31 * SECOND, 61 * SECOND,
			       241 * SECOND, 301 * SECOND, 7441 * SECOND };

static const __u32 bit_rates[] = { 0, 1000, 20000, 1000000 }, packet_rates[] = { 0, 1, 10, 1000 };
static const __u32 bursts_ms[] = { 0, 1, 65, 2000 };

static struct {
	const __u8 *at, *end;
	__u64 now;
	struct native_frame odd;     /* what is odd about the next frame */
	struct {
		__u8 who;            /* heard it: index in senders */
		__u32 length;
		__u8 frame[2048];
	} heard[HEARD_MAX];
	__u32 heard_count;
	__u8 bytes[NATIVE_FRAME_MAX];
} c;

static __u8 take(void)
{
	return c.at < c.end ? *c.at++ : 0;
}

static void remember(const struct native_result *result)
{
	__u32 place = c.heard_count++ % HEARD_MAX;

	c.heard[place].who = result->target == WORLD_LAN ? 4 : result->target;
	c.heard[place].length = result->length < 2048 ? result->length : 2048;
	memcpy(c.heard[place].frame, result->data, c.heard[place].length);
}

static void send(__u32 who, __u32 length)
{
	struct native_frame frame = c.odd;
	struct native_result result;

	c.odd = (struct native_frame){};
	frame.data = c.bytes;
	frame.length = length;
	frame.partial = frame.partial && frame_checksum_at(c.bytes, length);
	frame.gso_size = frame.partial ? frame.gso_size : 0;
	if (frame.partial) {
		frame.csum_start = 34;
		frame.csum_offset = frame_checksum_at(c.bytes, length) - 34;
		frame_repair(c.bytes, length, true);
	}
	oracle_run(&frame, senders[who], c.now, &result);
	if (result.target != 0xffff)
		remember(&result);
}

static void send_built(void)
{
	struct frame_plan plan = {};
	__u32 who = take() % 5;

	plan.src = who == 4 ? PICK(addresses, 4 + take() % 3) : addresses[who];
	plan.dst = PICK(addresses, take());
	plan.protocol = PICK(protocols, take());
	plan.sport = PICK(ports, take());
	plan.dport = PICK(ports, take());
	plan.flags = plan.protocol == IPPROTO_ICMP ? PICK(icmp_types, take()) : PICK(tcp_flags, take());
	plan.ttl = PICK(ttls, take());
	plan.load = take() * 6; /* up to 1530: some are too long */
	send(who, frame_build(&plan, macs[who], c.bytes));
}

/* One of the pieces of a few datagrams, from a domain, the LAN, or back from the sorter. */
static void send_piece(bool sorted)
{
	static const __u16 pieces[] = { 0x2000, 0x2003, 0x2006, 3, 6, 1, 0x2001, 8189 };
	struct frame_plan plan = { .ttl = 64 };
	__u32 who = take() % 5;

	plan.src = who == 4 ? 0xc000020b : addresses[who];
	plan.dst = who == 4 ? 0xc0000201 : PICK(addresses, take());
	plan.protocol = PICK(protocols, take());
	plan.id = take() & 1;
	plan.fragment = PICK(pieces, take());
	plan.sport = PICK(ports, take());
	plan.dport = PICK(ports, take());
	plan.flags = plan.protocol == IPPROTO_ICMP ? 8 : 2;
	plan.load = plan.fragment & 0x1fff ? 16 : plan.protocol == IPPROTO_TCP ? 4 : 16;
	send(sorted ? 5 : who, frame_build(&plan, macs[who], c.bytes));
}

/* Raw Ethernet, to a domain, to the router, to a group or to nobody. */
static void send_ether(void)
{
	__u32 who = take() % 5, bits = take();
	const __u8 *to = PICK(targets, bits);

	send(who, frame_ether(to, macs[who], PICK(ethertypes, take()), bits >> 3 == 0x1f ? 1501 : bits >> 3, c.bytes));
}

/* As many new conversations as fill a quota, or nearly. */
static void send_flood(void)
{
	__u32 who = take() % 5, count = take() % 32;
	struct frame_plan plan = { .ttl = 64 };

	plan.dst = PICK(addresses, take());
	plan.protocol = PICK(protocols, take());
	plan.dport = PICK(ports, take());
	plan.sport = PICK(ports, take());
	plan.flags = plan.protocol == IPPROTO_ICMP ? (plan.dport & 1 ? 13 : 8) : 2;
	for (plan.src = who == 4 ? 0xc000020b : addresses[who]; count--; plan.sport++)
		send(who, frame_build(&plan, macs[who], c.bytes));
}

static void send_answer(bool error)
{
	__u32 place = take() % HEARD_MAX, who = c.heard[place].who, length;
	__u8 kind = take();

	if (place >= c.heard_count)
		return;
	if (error)
		length = frame_icmp_error(c.heard[place].frame, c.heard[place].length, macs[who],
					  kind & 1 ? 11 : 3, kind >> 1 & 15, c.bytes);
	else
		length = frame_answer(c.heard[place].frame, c.heard[place].length, macs[who],
				      PICK(tcp_flags, kind), c.bytes);
	if (length)
		send(who, length);
}

static void send_raw(void)
{
	__u32 who = take() % 5, length = take();

	length |= take() << 8;
	if (length > c.end - c.at)
		length = c.end - c.at;
	memcpy(c.bytes, c.at, length);
	c.at += length;
	send(who, length);
}

static void be_odd(void)
{
	__u8 bits = take();

	c.odd.linear = take();
	c.odd.partial = bits & 1;
	c.odd.vlan = !(bits & 0x3e);
	c.odd.gso_size = bits & 0x40 ? 1400 : 0;
	c.odd.fail_at = bits & 0x80 ? take() : 0;
	native_kernel_context(bits & 4);
}

/* A program of the host binds a port, or lets it go. */
static void change_host(void)
{
	__u8 bits = take();

	native_host_listens(bits & 2 ? IPPROTO_UDP : IPPROTO_TCP, PICK(ports, bits >> 2), bits & 1);
}

/* Other rates for a domain, as the control plane sets them under traffic. */
static void change_rates(void)
{
	__u32 slot = take() % WORLD_SLOTS;
	struct vfr_domain *row = bpf_map_lookup_elem(native_map_named("domains"), &slot);
	struct vfr_cap *const caps[] = { &row->inward, &row->outward };

	for (int way = 0; way < 2; way++) {
		__u8 bits = take();

		caps[way]->bits_per_s = PICK(bit_rates, bits);
		caps[way]->packets_per_s = PICK(packet_rates, bits >> 2);
		caps[way]->burst_us = PICK(bursts_ms, bits >> 4) * 1000;
		meter_set(slot, way, caps[way]->bits_per_s, caps[way]->packets_per_s, PICK(bursts_ms, bits >> 4), c.now);
	}
	row->is_capped = row->inward.bits_per_s || row->inward.packets_per_s || row->outward.bits_per_s ||
			 row->outward.packets_per_s;
}

static void step(void)
{
	switch (take() % KINDS) {
	case BUILT:
		return send_built();
	case ANSWER:
		return send_answer(false);
	case ICMP_ERROR:
		return send_answer(true);
	case RAW:
		return send_raw();
	case TIME:
		c.now += PICK(times, take());
		return native_clock(c.now);
	case RULES:
		return world_next_policy();
	case ODD:
		return be_odd();
	case FLOOD:
		return send_flood();
	case HOST:
		return change_host();
	case PIECE:
		return send_piece(false);
	case SORTED:
		return send_piece(true);
	case ETHER:
		return send_ether();
	case RATES:
		return change_rates();
	case SWEEP:
		return native_sweep(take() % 5 == 4 ? VFR_ROW_LAN : take() % 4);
	}
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	c.at = data;
	c.end = data + size;
	c.now = WORLD_START;
	c.heard_count = 0;
	c.odd = (struct native_frame){};
	native_kernel_context(true);
	meter_reset();
	world_reset();
	for (int i = 0; i < STEPS_MAX && c.at < c.end; i++)
		step();
	return 0;
}
