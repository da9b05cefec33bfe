/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * meter: a second opinion on rates (7). It is a bucket that what passes is poured into and that leaks at the rate; the
 * fastpath keeps no bucket, but a time.
 *
 *   - what passes finds in each bucket that it is poured into no more than the burst;
 *   - who is dropped for a rate has such a rate, and has had more than the burst.
 */
#ifndef NATIVE_METER_H
#define NATIVE_METER_H

#include "kernel.h"

/* No domain has rates. */
void meter_reset(void);
/* Other rates for a slot from now on; 0 for none. */
void meter_set(__u32 slot, bool is_out, __u32 bits_per_s, __u32 packets_per_s, __u32 burst_ms, __u64 now);
/* It is not known any more how much a slot has sent, or been sent: it may be more. */
void meter_lose(void);
/* What went from a slot to another; a slot that is none has no rates. */
void meter_passed(__u32 from, __u32 to, const struct native_frame *frame, const struct native_result *end, __u64 now);
void meter_dropped(__u32 from, __u32 verdict, __u64 now);

#endif
