/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * rate: how much a domain may send and be sent a second, and what of an overloaded uplink is its share.
 *
 * A rate is one word, the time at which its allowance will be whole again (GCRA). Whoever is not further ahead of the
 * present than the burst may pass, with as long a packet as it likes, and goes into debt by what that takes. So a
 * frame of 64 KiB passes under any rate, and in any time no more passes than rate x time + burst + one frame. Credit
 * is looked for first, in all rates that a packet draws on, and only one that passes draws on any. Between that look
 * and the drawing other CPUs may have looked too; what all of them take is added up, so it is paid for later. A quota
 * may still refuse what a rate lets pass: then what was drawn is given back, so that nobody uses up another's rate by
 * what never arrives.
 *
 * What counts is frames as they are on an Ethernet, from the MAC on and without the checksum behind them: of a frame
 * that is still to be cut into segments (GSO), each with headers of its own.
 *
 * The uplink is a rate too, if it is known how much it takes. Nobody is dropped for that while its queue, as we
 * reckon it, is short. Once it is not, nobody may have more of it than the fair rate. That is found by trial: a little
 * less of it each time that the queue is too long, a little more when it is not. Thus it settles where those who want
 * less have all that they want, and all others the same (max-min fairness), whatever anybody sends. It takes no
 * queues of packets and no list of who is active, which a program here could not have.
 *
 * NOTE: dropped, not delayed: there is no queue to wait in. Of what comes from the LAN, or is domain 0's own, the
 * uplink's share knows nothing.
 */
#ifndef VFR_RATE_H
#define VFR_RATE_H

#include "limit.h"

#define MOST_BITS (8ULL << 20)    /* longer than any frame, so more debt than that is of a slower rate, gone now */
#define MOST_PACKETS 4096
#define WIRE_EXTRA 24             /* bytes that Ethernet puts around a frame: preamble, checksum, gap */
#define SHORT_BITS (8 * 256)
#define SECOND_SHIFT 30            /* a second, nearly */
#define QUEUE_NS 16000000ULL       /* of the uplink, the queue that is aimed at, and so many bits; the fair rate is */
#define QUEUE_BITS (1ULL << 20)  /* tried anew four times in that time */

/* What a packet takes, of whom. A slot that is none, as the LAN's, has no rates. */
struct load {
	__u64 now;
	__u64 uplink_rate;           /* 0 if it does not go there, or nobody knows */
	__u32 from, to;              /* slots */
	__u32 headers;               /* bytes of them that each of its segments has */
	__u32 packets, bits;
};

/* Their rows; any may be missing. */
struct parties {
	struct vfr_domain *from, *to;
	struct vfr_runtime *sender, *receiver, *uplink;
};

static __always_inline struct parties parties(const struct load *load)
{
	return (struct parties){
		.from = domain_in(load->from),
		.to = domain_in(load->to),
		.sender = runtime_of(load->from),
		.receiver = runtime_of(load->to),
		.uplink = runtime_of(VFR_ROW_LAN),
	};
}

/* How many packets a frame leaves as, of which each has this much in headers. Counted here, since a VM's frame does not
 * say (its gso_segs is 0). */
static __always_inline __u32 segments_of(const struct __sk_buff *skb, __u32 headers)
{
	__u32 size = skb->gso_size;

	return size ? (skb->len - headers + size - 1) / size : 1;
}

static __always_inline __u32 segments(const struct vfr_pkt *p)
{
	return segments_of(p->skb, L4_OFFSET + p->l4_length);
}

static __always_inline void weigh(const struct __sk_buff *skb, struct load *load)
{
	load->packets = segments_of(skb, load->headers);
	load->bits = 8 * (skb->len + (load->packets - 1) * load->headers);
}

/* What it takes of the uplink, with all that Ethernet puts around frames. */
static __always_inline __u64 wire_bits(const struct load *load)
{
	return load->bits + load->packets * WIRE_EXTRA * 8;
}

static __always_inline __u64 time_for(__u64 amount, __u64 per_s)
{
	return (amount * SECOND_NS + per_s - 1) / per_s;
}

/* Whether there is credit left. What is owed for longer than anything can be is owed at a slower rate that is not in
 * force any more. */
static __always_inline bool has_credit(__u64 *until_ns, __u64 now, __u64 burst_ns, __u64 most, __u64 per_s)
{
	__u64 old = *until_ns, longest;

	if (old <= now + burst_ns)
		return true;
	longest = now + burst_ns + time_for(most, per_s);
	if (old > longest)
		__sync_val_compare_and_swap(until_ns, old, longest);
	return false;
}

/* Draws on a rate. Whoever finds it whole begins at the present; if another CPU has just done so, that is added to. */
static __always_inline void draw(__u64 *until_ns, __u64 now, __u64 takes_ns)
{
	__u64 old = *until_ns;

	if (old >= now || __sync_val_compare_and_swap(until_ns, old, now + takes_ns) != old)
		__sync_fetch_and_add(until_ns, takes_ns);
}

static __always_inline enum vfr_verdict check_cap(const struct vfr_cap *cap, struct vfr_credit *credit,
						  const struct load *load, bool is_out)
{
	__u64 burst = cap->burst_us * 1000ULL;

	if (cap->bits_per_s && !has_credit(&credit->bits_until_ns, load->now, burst, MOST_BITS, cap->bits_per_s))
		return is_out ? VFR_DROP_RATE_OUT : VFR_DROP_RATE_IN;
	if (cap->packets_per_s &&
	    !has_credit(&credit->packets_until_ns, load->now, burst, MOST_PACKETS, cap->packets_per_s))
		return is_out ? VFR_DROP_PPS_OUT : VFR_DROP_PPS_IN;
	return VFR_CONTINUE;
}

static __always_inline void draw_cap(const struct vfr_cap *cap, struct vfr_credit *credit, const struct load *load)
{
	if (cap->bits_per_s)
		draw(&credit->bits_until_ns, load->now, time_for(load->bits, cap->bits_per_s));
	if (cap->packets_per_s)
		draw(&credit->packets_until_ns, load->now, time_for(load->packets, cap->packets_per_s));
}

/* The queue of the uplink that is aimed at, in time. */
static __always_inline __u64 queue_aim(__u64 uplink_rate)
{
	return QUEUE_NS + time_for(QUEUE_BITS, uplink_rate);
}

static __always_inline __u64 ahead(__u64 until_ns, __u64 now)
{
	return until_ns > now ? until_ns - now : 0;
}

/* Counts the sender among those that use the uplink, once a second. */
static __always_inline void be_active(struct vfr_runtime *sender, struct vfr_runtime *uplink, __u64 now)
{
	__u32 second = now >> SECOND_SHIFT, before = sender->active_at, was = uplink->active_at;

	if (before == second || __sync_val_compare_and_swap(&sender->active_at, before, second) != before)
		return;
	if (was != second && __sync_val_compare_and_swap(&uplink->active_at, was, second) == was) {
		uplink->active_before = was + 1 == second ? uplink->active : 0;
		uplink->active = 0;
	}
	__sync_fetch_and_add(&uplink->active, 1);
}

/* What each would get if all that use the uplink wanted more than that. */
static __always_inline __u64 least_share(const struct vfr_runtime *uplink, __u64 rate)
{
	__u32 most = uplink->active > uplink->active_before ? uplink->active : uplink->active_before;

	return most ? rate / most : rate;
}

/* The fair rate, tried anew if it is time: whoever gets to it first sees to that. */
static __always_inline __u64 fair_rate(struct vfr_runtime *uplink, __u64 rate, __u64 queue, __u64 aim, __u64 now)
{
	__u64 old = uplink->adjusted_ns, fair = uplink->fair_rate, least = least_share(uplink, rate);

	if (!fair || fair > rate)
		fair = uplink->fair_rate = rate;
	if (now - old < aim || __sync_val_compare_and_swap(&uplink->adjusted_ns, old, now) != old)
		return fair;
	if (queue > 2 * aim)
		fair -= fair / 4;
	else if (queue > aim)
		fair -= fair / 16;
	else
		fair += fair / 16 + 1;
	if (fair < least)
		fair = least;
	uplink->fair_rate = fair < rate ? fair : rate;
	return uplink->fair_rate;
}

/* Whether the sender has had too much of the uplink. At first only now and then a packet of its is dropped for that,
 * which TCP heeds; who does not heed it is held to the fair rate. What is short may go when nothing else of its may:
 * acknowledgments, questions, keystrokes. */
static __always_inline bool has_enough(struct vfr_runtime *sender, const struct load *load, __u64 aim)
{
	__u64 had = ahead(sender->share_until_ns, load->now), old = sender->warned_ns;

	if (load->bits <= SHORT_BITS)
		return had > 8 * aim;
	if (had > 4 * aim)
		return true;
	return had > 2 * aim && load->now - old > aim &&
	       __sync_val_compare_and_swap(&sender->warned_ns, old, load->now) == old;
}

/* Whether the sender may have the uplink now; 0, or the fair rate at which it is charged for it. */
static __always_inline __u64 share(struct vfr_runtime *sender, struct vfr_runtime *uplink, const struct load *load)
{
	__u64 queue = ahead(uplink->share_until_ns, load->now), aim = queue_aim(load->uplink_rate);
	__u64 fair;

	be_active(sender, uplink, load->now);
	fair = fair_rate(uplink, load->uplink_rate, queue, aim, load->now);
	return queue > aim / 2 && has_enough(sender, load, aim) ? 0 : fair;
}

/* What was had beyond the share while there was room is not held against anybody later. */
static __always_inline void draw_share(struct vfr_runtime *sender, struct vfr_runtime *uplink,
				       const struct load *load, __u64 fair)
{
	__u64 bits = wire_bits(load), old = sender->share_until_ns;
	__u64 most = load->now + 8 * queue_aim(load->uplink_rate);

	draw(&uplink->share_until_ns, load->now, time_for(bits, load->uplink_rate));
	if (old > most)
		__sync_val_compare_and_swap(&sender->share_until_ns, old, most);
	draw(&sender->share_until_ns, load->now, time_for(bits, fair));
}

/* All or nothing: every rate that the packet draws on has credit, or none is drawn on. */
__noinline enum vfr_verdict take(struct __sk_buff *skb, struct load *load)
{
	enum vfr_verdict verdict = VFR_CONTINUE;
	struct parties of;
	__u64 fair = 0;

	if (!load)
		return VFR_DROP_NOT_READY;
	weigh(skb, load);
	of = parties(load);
	if (of.from && of.sender)
		verdict = check_cap(&of.from->outward, &of.sender->outward, load, true);
	if (verdict == VFR_CONTINUE && of.to && of.receiver)
		verdict = check_cap(&of.to->inward, &of.receiver->inward, load, false);
	if (verdict == VFR_CONTINUE && load->uplink_rate && of.sender && of.uplink) {
		fair = share(of.sender, of.uplink, load);
		verdict = fair ? VFR_CONTINUE : VFR_DROP_SHARE;
	}
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (of.from && of.sender)
		draw_cap(&of.from->outward, &of.sender->outward, load);
	if (of.to && of.receiver)
		draw_cap(&of.to->inward, &of.receiver->inward, load);
	if (fair && of.sender && of.uplink)
		draw_share(of.sender, of.uplink, load, fair);
	return VFR_CONTINUE;
}

/* Not of a slot's next tenant, who has drawn on nothing yet. */
static __always_inline void undraw(__u64 *until_ns, __u64 takes_ns)
{
	if (*until_ns > takes_ns)
		__sync_fetch_and_sub(until_ns, takes_ns);
}

static __always_inline void return_cap(const struct vfr_cap *cap, struct vfr_credit *credit, const struct load *load)
{
	if (cap->bits_per_s)
		undraw(&credit->bits_until_ns, time_for(load->bits, cap->bits_per_s));
	if (cap->packets_per_s)
		undraw(&credit->packets_until_ns, time_for(load->packets, cap->packets_per_s));
}

/* What @take has just drawn, back. */
__noinline int give_back(struct __sk_buff *skb, struct load *load)
{
	struct parties of;
	__u64 fair, bits;

	if (!load)
		return 0;
	weigh(skb, load);
	of = parties(load);
	if (of.from && of.sender)
		return_cap(&of.from->outward, &of.sender->outward, load);
	if (of.to && of.receiver)
		return_cap(&of.to->inward, &of.receiver->inward, load);
	if (!load->uplink_rate || !of.sender || !of.uplink)
		return 0;
	fair = of.uplink->fair_rate;
	bits = wire_bits(load);
	undraw(&of.uplink->share_until_ns, time_for(bits, load->uplink_rate));
	if (fair)
		undraw(&of.sender->share_until_ns, time_for(bits, fair));
	return 0;
}

static __always_inline void load_of(const struct vfr_pkt *p, struct load *load)
{
	load->now = p->now;
	load->uplink_rate = p->to || p->hairpin ? 0 : p->config->uplink_rate;
	load->from = p->from ? p->from_slot : VFR_NODE_LAN;
	load->to = p->to_node;
	load->headers = L4_OFFSET + p->l4_length;
}

/* A hairpin is not sent on the uplink. */
static __always_inline bool has_rates(const struct vfr_pkt *p)
{
	return (!p->to && !p->hairpin && p->config->uplink_rate) || (p->from && p->from->is_capped) ||
	       (p->to && p->to->is_capped);
}

/* A packet that may go: within the caps of whom it comes from and whom it is for, and a share of the uplink. */
static __always_inline enum vfr_verdict keep_rates(struct vfr_pkt *p)
{
	struct load load = {};

	if (!has_rates(p))
		return VFR_CONTINUE;
	load_of(p, &load);
	return take(p->skb, &load);
}

/* A packet that was let through by @keep_rates and goes nowhere all the same. */
static __always_inline void return_rates(struct vfr_pkt *p)
{
	struct load load = {};

	if (!has_rates(p))
		return;
	load_of(p, &load);
	give_back(p->skb, &load);
}

#endif
