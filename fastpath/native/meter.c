// SPDX-License-Identifier: GPL-2.0-only
#include <string.h>
#include <linux/in.h>
#include "../vfr_abi.h"
#include "meter.h"
#include "world.h"

#define ETH_IP_HEADERS 34
#define SECOND 1000000000ULL

enum unit { BITS, PACKETS, UNITS };

/* In bits, or packets, times 10^9: then what leaks in a ns is the rate. */
struct bucket {
	__u64 per_s, burst_ns;
	unsigned __int128 level;
	__u64 at;
	__u32 poured;                /* how often: each time the fastpath rounds up by less than a ns */
	bool is_vague;               /* the fastpath's may be fuller */
};

static struct bucket buckets[WORLD_SLOTS][2][UNITS];

void meter_reset(void)
{
	memset(buckets, 0, sizeof(buckets));
}

static void set(struct bucket *bucket, __u32 per_s, __u32 burst_ms, __u64 now)
{
	bucket->is_vague |= bucket->per_s && bucket->level;
	bucket->per_s = per_s;
	bucket->burst_ns = burst_ms * 1000000ULL;
	bucket->level = 0;
	bucket->at = now;
}

void meter_set(__u32 slot, bool is_out, __u32 bits_per_s, __u32 packets_per_s, __u32 burst_ms, __u64 now)
{
	set(&buckets[slot][is_out][BITS], bits_per_s, burst_ms, now);
	set(&buckets[slot][is_out][PACKETS], packets_per_s, burst_ms, now);
}

void meter_lose(void)
{
	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++)
		for (int way = 0; way < 2; way++)
			for (int unit = 0; unit < UNITS; unit++)
				buckets[slot][way][unit].is_vague = true;
}

static void leak(struct bucket *bucket, __u64 now)
{
	unsigned __int128 leaked = (unsigned __int128)bucket->per_s * (now - bucket->at);

	bucket->at = now;
	if (bucket->level > leaked) {
		bucket->level -= leaked;
		return;
	}
	bucket->level = 0;
	bucket->poured = 0;
}

static bool is_full(const struct bucket *bucket, __u64 slack)
{
	return bucket->level + slack > (unsigned __int128)bucket->per_s * bucket->burst_ns;
}

static void pour(struct bucket *bucket, __u64 amount, __u32 slot, __u64 now)
{
	if (!bucket->per_s)
		return;
	leak(bucket, now);
	native_check(!is_full(bucket, 0), "slot %u has had more than its %llu a second", slot, bucket->per_s);
	bucket->level += (unsigned __int128)amount * SECOND;
	bucket->poured++;
}

/* The headers of each segment that a frame is to be cut into. */
static __u32 headers_of(const __u8 *frame)
{
	return ETH_IP_HEADERS + (frame[23] == IPPROTO_TCP ? frame[46] / 16 * 4 : 8);
}

static void pour_both(__u32 slot, bool is_out, const __u64 amounts[UNITS], __u64 now)
{
	for (int unit = 0; unit < UNITS && slot < WORLD_SLOTS; unit++)
		pour(&buckets[slot][is_out][unit], amounts[unit], slot, now);
}

void meter_passed(__u32 from, __u32 to, const struct native_frame *frame, const struct native_result *end, __u64 now)
{
	__u32 headers = frame->gso_size ? headers_of(end->data) : 0, load = end->length - headers;
	__u32 segments = frame->gso_size ? load / frame->gso_size + !!(load % frame->gso_size) : 1;
	__u64 amounts[UNITS] = { 8ULL * (load + segments * headers), segments };

	pour_both(from, true, amounts, now);
	pour_both(to, false, amounts, now);
}

static bool may_be_dropped(struct bucket *bucket, __u64 now)
{
	if (!bucket->per_s)
		return false;
	leak(bucket, now);
	return bucket->is_vague || is_full(bucket, bucket->per_s * bucket->poured);
}

/* Of a drop for what somebody is sent, it is not told who that is. */
void meter_dropped(__u32 from, __u32 verdict, __u64 now)
{
	bool is_out = verdict == VFR_DROP_RATE_OUT || verdict == VFR_DROP_PPS_OUT, may = false;
	enum unit unit = verdict == VFR_DROP_RATE_OUT || verdict == VFR_DROP_RATE_IN ? BITS : PACKETS;

	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++)
		may |= (!is_out || slot == from) && may_be_dropped(&buckets[slot][is_out][unit], now);
	native_check(may, "verdict %u for %u, whose rate has room", verdict, from);
}
