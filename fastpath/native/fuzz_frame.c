// SPDX-License-Identifier: GPL-2.0-only
/*
 * One frame, of any bytes, into a router that has some sessions open. The input is a header, below, and
 * the frame. Bits of it repair what chance hardly ever gets right, so that all stages are reached.
 */
#include <string.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include "frames.h"
#include "oracle.h"
#include "world.h"

enum {
	REPAIR_CHECKSUMS = 1,
	REPAIR_MACS = 2,             /* to the router, from the sender's own */
	PARTIAL = 4,
	VLAN = 8,
	HOST_LISTENS = 16,           /* on most ports of web's block and half of db's, mappings or not */
	GSO = 32,
	PROBE = 64,                  /* as on a kernel before 6.2 */
	NEIGHBOUR = 128,             /* with REPAIR_MACS: to a domain, and not to the router */
};

struct header {
	__u8 sender, flags, fail_at, chance;
	__u16 linear, gso_size;
};

static const __u32 senders[] = { 0, 1, 2, 3, WORLD_LAN, WORLD_SORTER };
static const __u8 macs[][6] = { { 2, 0, 0, 0, 0, 0x10 }, { 2, 0, 0, 0, 0, 2 }, { 2, 0, 0, 0, 0, 3 },
				{ 2, 0, 0, 0, 0, 4 }, { 2, 0, 0, 0, 0, 0x11 }, { 2, 0, 0, 0, 0, 0x12 } };

static const __u8 gateway[] = { 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff };

/* Of each kind one: out through NAT, in through a forward, between domains, from domain 0. */
static const struct { __u8 sender; struct frame_plan plan; } opening[] = {
	{ 1, { 0xa9fe0102, 0xc000020b, 6, 64, 2, 16393, 80, 0, 0, 0 } },
	{ 1, { 0xa9fe0102, 0xc000020b, 17, 64, 0, 16394, 53, 5, 0, 0 } },
	{ 1, { 0xa9fe0102, 0xc000020b, 1, 64, 8, 16395, 0, 8, 0, 0 } },
	{ 4, { 0xc000020b, 0xc0000201, 6, 64, 2, 40000, 2202, 0, 0, 0 } },
	{ 1, { 0xa9fe0102, 0xa9fe0103, 6, 64, 2, 3000, 5432, 0, 0, 0 } },
	{ 0, { 0xa9fe0100, 0xa9fe0102, 6, 64, 2, 50000, 22, 0, 0, 0 } },
	{ 1, { 0xa9fe0102, 0xc000020b, 1, 64, 13, 16395, 0, 12, 0, 0 } },
	{ 2, { 0xa9fe0103, 0xa9fe0102, 47, 64, 0, 0, 0, 12, 0, 0 } },
};

static void open_world(void)
{
	static __u8 bytes[NATIVE_FRAME_MAX];
	struct native_frame frame = { .data = bytes };
	struct native_result result;

	world_reset();
	for (size_t i = 0; i < sizeof(opening) / sizeof(*opening); i++) {
		frame.length = frame_build(&opening[i].plan, macs[opening[i].sender], bytes);
		world_send(&frame, senders[opening[i].sender]);
		native_run(&frame, &result);
		native_check(result.action == TC_ACT_REDIRECT, "opening %zu ends in verdict %u", i, result.verdict);
	}
}

static void run(__u8 *bytes, __u32 length, __u32 who, const struct header *header)
{
	struct native_result result;
	struct native_frame frame = {
		.data = bytes, .length = length, .linear = header->linear, .fail_at = header->fail_at,
		.vlan = !!(header->flags & VLAN),
		.partial = header->flags & PARTIAL && frame_checksum_at(bytes, length),
	};

	if (frame.partial) {
		frame.gso_size = header->flags & GSO ? header->gso_size : 0;
		frame.csum_start = 34;
		frame.csum_offset = frame_checksum_at(bytes, length) - 34;
	}
	oracle_run(&frame, senders[who], WORLD_START, &result);
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	static __u8 bytes[NATIVE_FRAME_MAX];
	struct header header;
	__u32 who, length = size - sizeof(header);

	if (size < sizeof(header) || length > NATIVE_FRAME_MAX)
		return -1;
	memcpy(&header, data, sizeof(header));
	memcpy(bytes, data + sizeof(header), length);
	who = header.sender % (sizeof(senders) / sizeof(*senders));
	native_kernel_context(true);
	open_world();
	native_kernel_context(!(header.flags & PROBE));
	native_random(header.chance, true);
	for (__u16 port = 16393; header.flags & HOST_LISTENS && port < 16404; port++) {
		native_host_listens(IPPROTO_TCP, port, true);
		native_host_listens(IPPROTO_UDP, port, true);
	}
	if (header.flags & REPAIR_MACS && length >= 12) {
		memcpy(bytes, header.flags & NEIGHBOUR ? macs[header.chance % WORLD_SLOTS] : gateway, 6);
		memcpy(bytes + 6, macs[who], 6);
	}
	if (header.flags & REPAIR_CHECKSUMS)
		frame_repair(bytes, length, header.flags & PARTIAL && frame_checksum_at(bytes, length));
	run(bytes, length, who, &header);
	return 0;
}
