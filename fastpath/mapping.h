/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mapping: which outside port stands for a domain's inside port. The same for every remote.
 *
 * A mapping takes its outside port from the domain's own block, so no two domains ever meet. The port
 * is claimed in @outside by compare-and-swap first, then the mapping is entered, and the claim is given
 * up if that fails. A port that a program of the host has bound is passed over (host.h). A TCP mapping
 * whose sessions are all over keeps its port for as long as nobody else needs it: late segments still
 * arrive, and yet a block of ports does not limit how many conversations a second can be had.
 */
#ifndef VFR_MAPPING_H
#define VFR_MAPPING_H

#include "host.h"
#include "limit.h"

#define EEXIST 17
#define SCAN 256      /* ports that are looked at before one that is over is taken */
#define SCAN_MAX 4096 /* and when there is none either */

/* One search for a free outside port: what it is for, and what it found. */
struct port_search {
	struct __sk_buff *skb;
	void *mappings;
	__u64 now;
	__u64 claim;                 /* the @outside entry to put there, as one word */
	__u32 space;
	__be32 remote;
	__be16 remote_port;
	__u16 low, count;
	__u16 next;                  /* offset in the block to try next */
	__u8 protocol;
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

/* Whether a program of the host has bound the port, and would get the answers to it. */
static __always_inline bool host_has(struct port_search *search, __be16 port)
{
	return host_owns(search->skb, search->protocol, search->remote, search->remote_port, port);
}

/* Whether the port that was so claimed may be taken: the mapping that claimed it is gone or has expired,
 * and the host has not bound it since. Then that mapping is forgotten. A claim of this or the last second
 * may belong to a mapping that another CPU is about to enter. */
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
		return (__u16)(search->now / SECOND_NS - u.entry.claimed_s) > 1 && !host_has(search, port);
	if (m->expires_ns > search->now || host_has(search, port))
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
	if (held ? !is_stale(search, held, port) : host_has(search, port))
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

static __always_inline __be16 scan_ports(struct port_search *search, __u32 most)
{
	search->next = bpf_get_prandom_u32() % search->count;
	bpf_loop(search->count < most ? search->count : most, try_port, search, 0);
	return search->found;
}

/* A free port of the block: the inside one if it may be, else the next from a random place on (RFC 4787
 * REQ-3, RFC 6056 3.3.1). If there is none near, the one that has been over longest, and at last any.
 * 0 if there is none. */
static __always_inline __be16 take_port(struct port_search *search, __u32 slot, __be16 inside_port)
{
	__u16 wish = bpf_ntohs(inside_port) - search->low;
	__be16 freed = 0;

	if ((wish < search->count && claim_port(search, wish)) || scan_ports(search, SCAN))
		return search->found;
	if (search->protocol == IPPROTO_TCP)
		freed = free_oldest_port(slot, search->now);
	if (freed && claim_port(search, bpf_ntohs(freed) - search->low))
		return search->found;
	return search->count > SCAN ? scan_ports(search, SCAN_MAX) : 0;
}

static __always_inline void give_up_port(struct port_search *search)
{
	__u64 *entry = (__u64 *)outside_port(search->space, search->found);

	if (entry)
		__sync_val_compare_and_swap(entry, search->claim, 0);
}

/* One more session for a mapping. False if it is being taken away at this moment. */
static __always_inline bool use_mapping(struct vfr_mapping *m, __u8 protocol, __u64 expires)
{
	if (protocol == IPPROTO_TCP && __sync_fetch_and_add(&m->open, 1) < 0)
		return false;
	if (m->expires_ns < expires)
		m->expires_ns = expires;
	return true;
}

#define MAPPING_IS_NEW 0x10000

/*
 * Enters a new mapping for the session's inside port; if another CPU was faster, its mapping is the one
 * that counts. The outside port, with MAPPING_IS_NEW if it is ours; 0 if there is none.
 * NOTE: an error of a map helper is an int. Up to Linux 6.3 the verifier puts the map's own function in
 * the helper's place, which leaves the upper half of the register zero: as a long it is not negative.
 */
__noinline __u32 new_mapping(struct __sk_buff *skb, __u32 slot, const struct vfr_session_key *session, __u64 now,
			     __u64 expires)
{
	void *table = bpf_map_lookup_elem(&mappings, &slot);
	struct vfr_domain *owner = domain_in(slot);
	struct vfr_mapping mapping = { .expires_ns = expires }, *winner;
	struct port_search search = { .skb = skb, .mappings = table, .now = now };
	struct vfr_mapping_key key = {};
	int err;

	if (!table || !owner || !session || !owner->port_count)
		return 0;
	key.inside_port = session->inside_port;
	key.protocol = session->protocol;
	search.remote = session->remote;
	search.remote_port = session->remote_port;
	search.low = owner->port_low;
	search.count = owner->port_count;
	search.space = space_of(key.protocol);
	search.protocol = key.protocol;
	search.claim = outside_word(slot, key.inside_port, now);
	mapping.open = key.protocol == IPPROTO_TCP;
	mapping.outside_port = take_port(&search, slot, key.inside_port);
	if (!mapping.outside_port)
		return 0;
	err = bpf_map_update_elem(table, &key, &mapping, BPF_NOEXIST);
	if (!err)
		return mapping.outside_port | MAPPING_IS_NEW;
	give_up_port(&search);
	winner = err == -EEXIST ? bpf_map_lookup_elem(table, &key) : NULL;
	return winner && use_mapping(winner, key.protocol, expires) ? winner->outside_port : 0;
}

/* The outside port for the packet's inside port, living at least until `expires`. */
static __always_inline enum vfr_verdict map_port(struct vfr_pkt *p, __u64 expires)
{
	struct vfr_mapping_key key = { .inside_port = p->sport, .protocol = p->l4_proto };
	void *table = bpf_map_lookup_elem(&mappings, &p->from_slot);
	struct vfr_mapping *m;
	__u32 found;

	if (!table)
		return VFR_DROP_NOT_READY;
	m = bpf_map_lookup_elem(table, &key);
	if (m && m->expires_ns > p->now) {
		p->outside_port = m->outside_port;
		return use_mapping(m, p->l4_proto, expires) ? VFR_CONTINUE : VFR_DROP_PORTS_FULL;
	}
	if (m)
		bpf_map_delete_elem(table, &key);
	found = new_mapping(p->skb, p->from_slot, &p->key, p->now, expires);
	p->outside_port = found;
	p->new_mapping = found & MAPPING_IS_NEW;
	return found ? VFR_CONTINUE : VFR_DROP_PORTS_FULL;
}

/* The mapping of an inside port, if it still has that outside port; else NULL. */
static __always_inline struct vfr_mapping *mapping_of(__u32 slot, const struct vfr_session_key *session,
						      __be16 outside_port)
{
	struct vfr_mapping_key key = { .inside_port = session->inside_port, .protocol = session->protocol };
	void *table = bpf_map_lookup_elem(&mappings, &slot);
	struct vfr_mapping *m = table ? bpf_map_lookup_elem(table, &key) : NULL;

	return m && m->outside_port == outside_port ? m : NULL;
}

/* Takes back what map_port did for a session that could not be entered. */
__noinline int unmap_port(__u32 slot, const struct vfr_session_key *session, __be16 outside_port, __u32 is_new)
{
	struct vfr_mapping_key key = {};
	struct vfr_mapping *m;

	if (!session)
		return 0;
	m = mapping_of(slot, session, outside_port);
	if (m && session->protocol == IPPROTO_TCP)
		__sync_fetch_and_add(&m->open, -1);
	key.inside_port = session->inside_port;
	key.protocol = session->protocol;
	if (m && is_new)
		take_away_mapping(slot, &key, outside_port);
	return 0;
}

#endif
