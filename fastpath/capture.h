/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * capture: what is seen on one VIF, frame by frame, with each one's verdict, for as long as somebody reads.
 *
 * A frame from a guest is copied when it comes in, before anything is changed in it, and goes into its capture's ring
 * at its end, when the verdict is known. What goes to a guest is copied as it leaves, and what is dropped on the way
 * to it as it then is. So a capture shows both ways what is on the wire at the VIF: a clone's frames as its guest
 * knows them, and nothing that NAT made.
 *
 * Reading is what keeps it going: @captures says until when, and whoever reads moves that on. Nothing of the fastpath's
 * depends on a ring: one that is full, and a rate that is used up, lose the copy, which is counted (@captured).
 *
 * NOTE: between the copy and the verdict the frame lies in @arrival, one row a CPU, as a hook runs to its end before
 * the next frame's begins.
 */
#ifndef VFR_CAPTURE_H
#define VFR_CAPTURE_H

#include "limit.h"

/* Whether anybody at all captures anything: all that it costs while nobody does. */
static __always_inline bool is_capturing(__u64 now)
{
	__u32 all = VFR_CAPTURES_ALL;
	struct vfr_capture *any = bpf_map_lookup_elem(&captures, &all);

	return any && any->until_ns > now;
}

/* The capture of the slot's present tenant, or NULL. */
static __always_inline struct vfr_capture *capture_of(__u32 slot, __u64 now)
{
	struct vfr_capture *capture = slot < VFR_SLOTS ? bpf_map_lookup_elem(&captures, &slot) : NULL;
	struct vfr_domain *domain;

	if (!capture || capture->until_ns <= now)
		return NULL;
	domain = domain_in(slot);
	return domain && domain->generation == capture->generation ? capture : NULL;
}

static __always_inline struct vfr_sight *sight_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&arrival, &zero);
}

/* Copies the frame's beginning as it is now. A tag that an interface took off stands beside it. */
static __always_inline void copy_frame(struct __sk_buff *skb, struct vfr_sight *s, __u32 snap)
{
	__u32 size = skb->len < snap ? skb->len : snap;

	s->length = skb->len;
	s->kept = 0;
	s->gso_size = skb->gso_size;
	s->vlan_protocol = skb->vlan_present ? skb->vlan_proto : 0;
	s->vlan_tag = skb->vlan_tci;
	if (!size)
		return;
	/* NOTE: see sum_chunk. */
	barrier_var(size);
	size = ((size - 1) & (VFR_SNAP_MAX - 1)) + 1;
	if (!bpf_skb_load_bytes(skb, 0, s->frame, size))
		s->kept = size;
}

/* Puts what was seen into the slot's ring, if it is wanted there, and the rate has room for it. */
static __always_inline void keep(__u32 slot, const struct vfr_capture *capture, struct vfr_sight *s)
{
	struct vfr_captured *count = bpf_map_lookup_elem(&captured, &slot);
	void *ring = bpf_map_lookup_elem(&capture_rings, &slot);
	__u32 kept = s->kept;

	if (!count || !ring || !(capture->wanted >> (s->verdict & 63) & 1))
		return;
	__sync_fetch_and_add(&count->seen, 1);
	if (capture->per_s && !within_rate(&count->whole_ns, s->at_ns, capture->per_s)) {
		__sync_fetch_and_add(&count->too_fast, 1);
		__sync_fetch_and_add(&count->untold, 1);
		return;
	}
	s->lost = __sync_lock_test_and_set(&count->untold, 0);
	if (kept > VFR_SNAP_MAX)
		kept = VFR_SNAP_MAX;
	/* The reader looks by itself, many times a second. */
	if (bpf_ringbuf_output(ring, s, offsetof(struct vfr_sight, frame) + kept, BPF_RB_NO_WAKEUP)) {
		__sync_fetch_and_add(&count->no_room, 1);
		__sync_fetch_and_add(&count->untold, s->lost + 1);
	}
}

/* A frame has come from a slot's guest: copies it, if somebody wants to see it, until its end is known. */
__noinline int see_arrival(struct __sk_buff *skb, __u32 slot, __u64 now)
{
	struct vfr_capture *capture = capture_of(slot, now);
	struct vfr_sight *s = sight_here();

	if (!s)
		return 0;
	s->way = capture ? VFR_SEEN_FROM : VFR_SEEN_NOT;
	if (capture)
		copy_frame(skb, s, capture->snap);
	return 0;
}

/* How a packet ended, as far as a capture or a trace tells of it. */
struct ending {
	__u64 now;
	__u32 verdict, rule;
	__u32 row;                   /* whose it was, as in @counters */
	__u32 to;                    /* a slot, VFR_NODE_LAN, or VFR_NODE_NONE where nobody is known */
	__be16 outside_port;
	__u8 protocol;
	bool sorted, has_session;
};

/* The frame as it leaves for a slot's guest, or would have. All else of `s` is known already. */
static __always_inline void see_leaving(struct __sk_buff *skb, struct vfr_sight *s, __u32 slot, __u8 way)
{
	struct vfr_capture *capture = capture_of(slot, s->at_ns);

	if (!capture)
		return;
	copy_frame(skb, s, capture->snap);
	s->way = way;
	keep(slot, capture, s);
}

/* A packet's end, before an error is made of it: for the capture of whose it was, and of whom it was for. */
static __always_inline void see_end(struct __sk_buff *skb, const struct ending *end)
{
	struct vfr_sight *s = sight_here();
	struct vfr_capture *capture;

	if (!s)
		return;
	s->at_ns = end->now;
	s->verdict = end->verdict;
	s->rule = end->rule;
	s->other = end->to;
	s->outside_port = end->outside_port;
	capture = s->way == VFR_SEEN_FROM ? capture_of(end->row, end->now) : NULL;
	if (capture) {
		s->way = end->sorted ? VFR_SEEN_AGAIN : VFR_SEEN_FROM;
		keep(end->row, capture, s);
	}
	s->way = VFR_SEEN_NOT;
	s->other = end->row == VFR_ROW_LAN ? VFR_NODE_LAN : end->row;
	switch (end->verdict) {
	case VFR_ANSWERED:
	case VFR_DHCP_NAK:
		see_leaving(skb, s, end->row, VFR_SEEN_REPLY);
		return;
	case VFR_TO_SORTER: /* seen when they come back */
	case VFR_HAIRPIN:
	case VFR_NOT_OURS:
		return;
	default:
		if (end->to != end->row)
			see_leaving(skb, s, end->to, VFR_SEEN_TO);
		return;
	}
}

/* The frame whose end was just seen has become an ICMP error, to the guest that sent it. */
__noinline int see_error(struct __sk_buff *skb, __u32 row)
{
	struct vfr_sight *s = sight_here();

	if (s)
		see_leaving(skb, s, row, VFR_SEEN_REPLY);
	return 0;
}

#endif
