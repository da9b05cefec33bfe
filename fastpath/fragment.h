/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fragment: only the first one of a datagram says which ports it is for, so the others follow it.
 *
 * What became of the first fragment is noted in @fragments, an inner map per sender. If a later one
 * comes before it, all fragments of this datagram go to the sorter: a network namespace of ours, where
 * the kernel's own reassembly puts them together and sends them back in order, as fragments again. The
 * sorter also cuts what is too long for the next link and may be cut (RFC 4787 REQ-13a, REQ-14). What
 * comes back is judged like any packet of its sender's, whom the source address names: guard has
 * checked it before. The note's quota bounds what one sender can keep waiting there.
 */
#ifndef VFR_FRAGMENT_H
#define VFR_FRAGMENT_H

#include "limit.h"

#define SORTED_PIECES_MAX 128 /* of one datagram: 64 KiB in the smallest fragments anybody sends in earnest */

static __always_inline __u32 fragment_row(const struct vfr_pkt *p)
{
	return p->from ? p->from_slot : VFR_ROW_LAN;
}

static __always_inline struct vfr_fragment_key fragment_key(const struct vfr_pkt *p)
{
	return (struct vfr_fragment_key){ .src = p->src, .dst = p->dst, .id = p->id, .protocol = p->l4_proto };
}

static __always_inline struct vfr_fragment *find_fragment(struct vfr_pkt *p)
{
	struct vfr_fragment_key key = fragment_key(p);
	__u32 row = fragment_row(p);
	void *table = bpf_map_lookup_elem(&fragments, &row);
	struct vfr_fragment *note = table ? bpf_map_lookup_elem(table, &key) : NULL;

	return note && note->expires_ns > p->now ? note : NULL;
}

__noinline enum vfr_verdict enter_fragment(__u32 row, const struct vfr_fragment_key *key,
					   const struct vfr_fragment *note, __u64 now)
{
	void *table = bpf_map_lookup_elem(&fragments, &row);
	struct vfr_fragment_key own_key;
	struct vfr_fragment own_note;
	int err;

	if (!table || !key || !note)
		return VFR_DROP_NOT_READY;
	own_key = *key;
	own_note = *note;
	err = bpf_map_update_elem(table, &own_key, &own_note, BPF_ANY);
	if (err == -E2BIG) {
		sweep_sometimes(row, now);
		err = bpf_map_update_elem(table, &own_key, &own_note, BPF_ANY);
	}
	return err ? VFR_DROP_FRAGMENTS_FULL : VFR_CONTINUE;
}

static __always_inline enum vfr_verdict note_fragment(struct vfr_pkt *p, struct vfr_fragment *note)
{
	struct vfr_fragment_key key = fragment_key(p);

	note->expires_ns = p->now + p->config->timers.fragments_s * SECOND_NS;
	return enter_fragment(fragment_row(p), &key, note, p->now);
}

/* The sorter forwards by the book: the TTL that it takes is put on before, and it is spoken to by the
 * MAC that it has. */
__noinline int prepare_for_sorter(struct __sk_buff *skb)
{
	struct ethhdr *eth = header(skb, 0, L4_OFFSET);
	struct iphdr *ip = (void *)(eth + 1);
	__u32 sum;

	if (!eth)
		return false;
	__builtin_memcpy(eth->h_dest, gateway_mac, ETH_ALEN);
	if (ip->ttl < 255) {
		sum = (__u32)ip->check + bpf_htons(0xfeff); /* RFC 1624: TTL up by one */
		ip->check = (__sum16)(sum + (sum >= 0xffff));
		ip->ttl++;
	}
	return true;
}

static __always_inline enum vfr_verdict to_sorter(struct vfr_pkt *p)
{
	if (!p->config->sorter_ifindex)
		return VFR_DROP_NO_SORTER;
	if (!prepare_for_sorter(p->skb))
		return VFR_DROP_KERNEL;
	p->action = bpf_redirect(p->config->sorter_ifindex, 0);
	return VFR_TO_SORTER;
}

/* A fragment whose first one is still to come, or came after it: into the sorter with the others. */
static __always_inline enum vfr_verdict sort(struct vfr_pkt *p, struct vfr_fragment *note)
{
	struct vfr_fragment fresh = { .way = VFR_WAY_SORT, .seen = 1 };
	enum vfr_verdict verdict;

	if (note)
		return __sync_fetch_and_add(&note->seen, 1) < SORTED_PIECES_MAX ? to_sorter(p)
									       : VFR_DROP_FRAGMENTS_FULL;
	verdict = note_fragment(p, &fresh);
	return verdict == VFR_CONTINUE ? to_sorter(p) : verdict;
}

/* The rules have changed since the first one was let through: would they do so now? */
static __always_inline bool ask_again(struct vfr_pkt *p, struct vfr_fragment *note)
{
	__u32 now = p->config->policy;

	barrier();
	p->rule = ask_policy(note->opener, note->target, note->remote, ports_rest(0, p->l4_proto, note->service));
	if (verdict_of(rule_number(p->rule)) != VFR_CONTINUE)
		return false;
	note->policy = now;
	return true;
}

/* A later fragment goes where the first one went, as long as that is still right. */
static __always_inline enum vfr_verdict follow(struct vfr_pkt *p, struct vfr_fragment *note)
{
	if ((bpf_ntohs(p->fragment) & 0x1fff) * 8 < note->first_end)
		return VFR_DROP_FRAGMENT;
	if (note->policy != p->config->policy && !ask_again(p, note))
		return VFR_DROP_POLICY;
	p->to_node = note->to_node;
	p->new_id = note->new_id;
	if (note->to_node == VFR_NODE_LAN) {
		p->hairpin = p->dst == p->config->outside_address;
		return p->config->uplink_ifindex ? VFR_CONTINUE : VFR_DROP_NO_UPLINK;
	}
	p->to = domain_in(note->to_node);
	return p->to && p->to->generation == note->generation ? VFR_CONTINUE : VFR_DROP_NO_DOMAIN;
}

/* What a VIF's fragments go through before their session is looked for. A later fragment has none. */
static __always_inline enum vfr_verdict fragment(struct vfr_pkt *p)
{
	struct vfr_fragment *note;

	if (!p->fragment)
		return VFR_CONTINUE;
	note = find_fragment(p);
	if (p->first)
		return note && note->way == VFR_WAY_SORT && !p->sorted ? sort(p, note) : VFR_CONTINUE;
	if (note && note->way == VFR_WAY_GO)
		return follow(p, note);
	/* Sorted, and yet nothing to follow: the first one was refused. */
	return p->sorted ? VFR_DROP_FRAGMENT : sort(p, note);
}

/* The first fragment may go: the others are to follow. */
static __always_inline enum vfr_verdict lead(struct vfr_pkt *p)
{
	struct vfr_fragment note = {
		.policy = p->policy,
		.remote = p->key.remote,
		.opener = p->opener,
		.target = p->target,
		.service = p->service,
		.generation = p->to ? p->to->generation : 0,
		.to_node = p->to_node,
		.first_end = p->l3_length - sizeof(struct iphdr),
		.new_id = p->new_id,
		.way = VFR_WAY_GO,
	};

	return note_fragment(p, &note);
}

#endif
