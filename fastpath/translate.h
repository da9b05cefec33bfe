/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * translate: what the packet looks like on the other side, and the state that says so next time.
 *
 * A mapping (inside port <-> outside port, the same for every remote) belongs to a domain and takes
 * its outside port from the domain's own block, so no two domains ever meet. An outside port is
 * claimed in @outside by compare-and-swap first, then the mapping is entered, and the claim is given
 * up if that fails. Tables that are full are cleared of the dead once a second at the most; if that
 * makes no room the packet is dropped, and nothing that lives is touched.
 */
#ifndef VFR_TRANSLATE_H
#define VFR_TRANSLATE_H

#include "session.h"

#define EEXIST 17
#define E2BIG 7
#define PORT_TRIES 256

static long sweep_session(void *map, const void *key, struct vfr_session *s, __u64 *now)
{
	if (s->expires_ns <= *now)
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_mapping(void *map, const void *key, struct vfr_mapping *m, __u64 *now)
{
	if (m->expires_ns <= *now)
		bpf_map_delete_elem(map, key);
	return 0;
}

/* Whether this packet is the one that clears `slot`'s tables this second. */
static __always_inline bool may_sweep(__u32 slot, __u64 now)
{
	struct vfr_runtime *r = bpf_map_lookup_elem(&runtime, &slot);
	__u64 swept;

	if (!r)
		return false;
	swept = r->swept_ns;
	if (now - swept < SECOND_NS)
		return false;
	return __sync_val_compare_and_swap(&r->swept_ns, swept, now) == swept;
}

static __always_inline void sweep(__u32 slot, __u64 now)
{
	void *own = bpf_map_lookup_elem(&sessions, &slot);
	void *from_lan = bpf_map_lookup_elem(&inbound, &slot);
	void *ports = bpf_map_lookup_elem(&mappings, &slot);

	if (!own || !from_lan || !ports || !may_sweep(slot, now))
		return;
	bpf_for_each_map_elem(own, sweep_session, &now, 0);
	bpf_for_each_map_elem(from_lan, sweep_session, &now, 0);
	bpf_for_each_map_elem(ports, sweep_mapping, &now, 0);
}

/* One search for a free outside port: what it is for, and what it found. */
struct port_search {
	void *mappings;
	__u64 now;
	__u32 space;
	__u16 low, count;
	__u16 next;                  /* offset in the block to try next */
	__u8 protocol;
	__u64 claim;                 /* the @outside entry to put there, as one word */
	__be16 found;
};

static __always_inline __u64 outside_word(__u16 slot, __be16 inside_port, __u64 now)
{
	union { struct vfr_outside entry; __u64 word; } u = {
		.entry = {
			.slot = slot,
			.inside_port = inside_port,
			.holder = VFR_PORT_MAPPING,
			.claimed_s = now / SECOND_NS,
		},
	};

	return u.word;
}

/* Whether the mapping that once claimed `port` is gone or has expired; then it is forgotten. A
 * claim of this or the last second may belong to a mapping that another CPU is about to enter. */
static __always_inline bool is_stale(struct port_search *search, __u64 word, __be16 port)
{
	union { __u64 word; struct vfr_outside entry; } u = { .word = word };
	struct vfr_mapping_key key = {
		.inside_port = u.entry.inside_port,
		.protocol = search->protocol,
	};
	struct vfr_mapping *m;

	if (u.entry.holder != VFR_PORT_MAPPING)
		return false;
	m = bpf_map_lookup_elem(search->mappings, &key);
	if (!m || m->outside_port != port)
		return (__u16)(search->now / SECOND_NS - u.entry.claimed_s) > 1;
	if (m->expires_ns > search->now)
		return false;
	bpf_map_delete_elem(search->mappings, &key);
	return true;
}

static __always_inline bool claim_port(struct port_search *search, __u16 offset)
{
	__be16 port = bpf_htons(search->low + offset);
	__u64 *entry = (__u64 *)outside_port(search->space, port);
	__u64 held;

	if (!entry)
		return false;
	held = *entry;
	if (held && !is_stale(search, held, port))
		return false;
	if (__sync_val_compare_and_swap(entry, held, search->claim) != held)
		return false;
	search->found = port;
	return true;
}

static long try_port(__u32 i, struct port_search *search)
{
	__u16 offset = search->next;

	search->next = offset + 1 < search->count ? offset + 1 : 0;
	return claim_port(search, offset);
}

/* A free port of the block: the inside one if it may be, else from a random place on
 * (RFC 4787 REQ-3, RFC 7857 9). 0 if there is none. */
static __always_inline __be16 take_port(struct port_search *search, __be16 inside_port)
{
	__u16 wish = bpf_ntohs(inside_port) - search->low;

	if (wish < search->count && claim_port(search, wish))
		return search->found;
	search->next = bpf_get_prandom_u32() % search->count;
	bpf_loop(search->count < PORT_TRIES ? search->count : PORT_TRIES, try_port, search, 0);
	return search->found;
}

static __always_inline void give_up_port(struct port_search *search)
{
	__u64 *entry = (__u64 *)outside_port(search->space, search->found);

	if (entry)
		__sync_val_compare_and_swap(entry, search->claim, 0);
}

/* Enters a new mapping; if another CPU was faster, its mapping is the one that counts. */
static __always_inline enum vfr_verdict new_mapping(struct vfr_pkt *p, void *table,
						    struct vfr_mapping_key *key, __u64 expires)
{
	struct port_search search = {
		.mappings = table, .now = p->now, .space = port_space(p),
		.low = p->from->port_low, .count = p->from->port_count,
		.protocol = p->l4_proto, .claim = outside_word(p->from_slot, p->sport, p->now),
	};
	struct vfr_mapping mapping = { .expires_ns = expires }, *winner;
	long err;

	if (!search.count || !take_port(&search, p->sport))
		return VFR_DROP_PORTS_FULL;
	p->outside_port = mapping.outside_port = search.found;
	err = bpf_map_update_elem(table, key, &mapping, BPF_NOEXIST);
	if (!err)
		return VFR_CONTINUE;
	give_up_port(&search);
	winner = err == -EEXIST ? bpf_map_lookup_elem(table, key) : NULL;
	if (!winner)
		return VFR_DROP_PORTS_FULL;
	p->outside_port = winner->outside_port;
	return VFR_CONTINUE;
}

/* The outside port for the packet's inside port, living at least until `expires`. */
static __always_inline enum vfr_verdict map_port(struct vfr_pkt *p, __u64 expires)
{
	struct vfr_mapping_key key = { .inside_port = p->sport, .protocol = p->l4_proto };
	void *table = bpf_map_lookup_elem(&mappings, &p->from_slot);
	struct vfr_mapping *m;

	if (!table)
		return VFR_DROP_NOT_READY;
	m = bpf_map_lookup_elem(table, &key);
	if (m && m->expires_ns > p->now) {
		if (m->expires_ns < expires)
			m->expires_ns = expires;
		p->outside_port = m->outside_port;
		return VFR_CONTINUE;
	}
	if (m)
		bpf_map_delete_elem(table, &key);
	return new_mapping(p, table, &key, expires);
}

/* A session that goes on keeps its mapping alive. */
static __always_inline void refresh_mapping(struct vfr_pkt *p)
{
	struct vfr_mapping_key key = { .protocol = p->l4_proto };
	__u32 slot = p->opener;
	void *table = bpf_map_lookup_elem(&mappings, &slot);
	struct vfr_mapping *m;

	key.inside_port = p->reply ? p->inside_port : p->sport;
	m = table ? bpf_map_lookup_elem(table, &key) : NULL;
	if (m && m->outside_port == p->outside_port && m->expires_ns < p->session->expires_ns)
		m->expires_ns = p->session->expires_ns;
}

/* Enters the session in its opener's table. A dead one under the same key is written over. */
static __always_inline enum vfr_verdict new_session(struct vfr_pkt *p)
{
	__u8 state = p->l4_proto == IPPROTO_TCP ? VFR_TCP_OPENING : VFR_TCP_NONE;
	struct vfr_session_key key = session_key(p, p->inbound);
	struct vfr_session s = {
		.expires_ns = p->now + idle_time(p, state),
		.policy = p->config->policy,
		.peer_generation = !p->inbound && p->to ? p->to->generation : 0,
		.peer = p->inbound ? VFR_NODE_LAN : p->to_node,
		.outside_port = p->outside_port,
		.tcp_state = state,
	};
	__u32 slot = p->inbound ? p->to_node : p->from_slot;
	void *table;
	long err;

	table = p->inbound ? bpf_map_lookup_elem(&inbound, &slot) : bpf_map_lookup_elem(&sessions, &slot);
	if (!table)
		return VFR_DROP_NOT_READY;
	if (p->inbound)
		key.inside_port = p->inside_port;
	err = bpf_map_update_elem(table, &key, &s, BPF_ANY);
	if (err == -E2BIG) {
		sweep(slot, p->now);
		err = bpf_map_update_elem(table, &key, &s, BPF_ANY);
	}
	if (err)
		return err == -E2BIG ? VFR_DROP_SESSIONS_FULL : VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

/* State for a packet that policy let through: a new conversation's, or one more second of an old. */
static __always_inline enum vfr_verdict keep_state(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = VFR_CONTINUE;
	__u64 before;

	if (p->session) {
		before = p->session->expires_ns;
		refresh(p);
		if (p->session->expires_ns != before && p->outside_port && !p->inbound)
			refresh_mapping(p);
		return VFR_CONTINUE;
	}
	if (!p->inbound && !p->to)
		verdict = map_port(p, p->now + idle_time(p, VFR_TCP_OPENING));
	return verdict == VFR_CONTINUE ? new_session(p) : verdict;
}

static __always_inline __u32 l4_checksum_offset(const struct vfr_pkt *p)
{
	if (p->l4_proto == IPPROTO_TCP)
		return L4_OFFSET + offsetof(struct tcphdr, check);
	if (p->l4_proto == IPPROTO_UDP)
		return L4_OFFSET + offsetof(struct udphdr, check);
	return L4_OFFSET + offsetof(struct vfr_icmp, checksum);
}

/* One fact a call, and the kernel knows what each means for a checksum that is still to be
 * completed (CHECKSUM_PARTIAL): an address is in the pseudo header, a port is not. */
static __always_inline enum vfr_verdict fix_l4_checksum(struct vfr_pkt *p, __be32 old_ip, __be32 new_ip,
							__be16 old_port, __be16 new_port)
{
	__u64 udp = p->l4_proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 offset = l4_checksum_offset(p);

	if (p->l4_proto != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(p->skb, offset, old_ip, new_ip, udp | BPF_F_PSEUDO_HDR | sizeof(new_ip)))
		return VFR_DROP_KERNEL;
	if (old_port != new_port &&
	    bpf_l4_csum_replace(p->skb, offset, old_port, new_port, udp | sizeof(new_port)))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

/* To the LAN: the domain's address and port become domain 0's and the outside one. */
static __always_inline enum vfr_verdict translate_source(struct vfr_pkt *p)
{
	__u32 port_at = p->l4_proto == IPPROTO_ICMP ? L4_OFFSET + offsetof(struct vfr_icmp, id)
						    : L4_OFFSET;
	__be32 address = p->config->outside_address;
	enum vfr_verdict verdict = fix_l4_checksum(p, p->src, address, p->sport, p->outside_port);

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (bpf_l3_csum_replace(p->skb, L3_OFFSET + offsetof(struct iphdr, check), p->src, address,
				sizeof(address)) ||
	    bpf_skb_store_bytes(p->skb, L3_OFFSET + offsetof(struct iphdr, saddr), &address,
				sizeof(address), 0) ||
	    bpf_skb_store_bytes(p->skb, port_at, &p->outside_port, sizeof(p->outside_port), 0))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

/* From the LAN: domain 0's address and the outside port become the domain's own. */
static __always_inline enum vfr_verdict translate_target(struct vfr_pkt *p)
{
	__u32 port_at = p->l4_proto == IPPROTO_ICMP ? L4_OFFSET + offsetof(struct vfr_icmp, id)
						    : L4_OFFSET + offsetof(struct udphdr, dest);
	__be32 address = p->to->address;
	enum vfr_verdict verdict = fix_l4_checksum(p, p->dst, address, p->dport, p->inside_port);

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (bpf_l3_csum_replace(p->skb, L3_OFFSET + offsetof(struct iphdr, check), p->dst, address,
				sizeof(address)) ||
	    bpf_skb_store_bytes(p->skb, L3_OFFSET + offsetof(struct iphdr, daddr), &address,
				sizeof(address), 0) ||
	    bpf_skb_store_bytes(p->skb, port_at, &p->inside_port, sizeof(p->inside_port), 0))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict translate(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = keep_state(p);

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (!p->to)
		return translate_source(p);
	return p->from ? VFR_CONTINUE : translate_target(p);
}

#endif
