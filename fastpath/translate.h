/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * translate: the state that a packet makes or carries on, and what it looks like on the other side.
 */
#ifndef VFR_TRANSLATE_H
#define VFR_TRANSLATE_H

#include "fragment.h"
#include "mapping.h"
#include "rate.h"
#include "related.h"

static __always_inline __u32 kind_of(const struct vfr_pkt *p)
{
	if (p->inbound)
		return VFR_KIND_INBOUND;
	return p->outside_port ? VFR_KIND_LAN : VFR_KIND_NEAR;
}

/* What else changes with a TCP state: counts, and the queue of those that may be forgotten. A full
 * queue loses its oldest entry, which then simply stays until its time is over. */
__noinline int state_changed(__u32 slot, __u32 kind, const struct vfr_closing *entry, __u32 old, __u32 new)
{
	struct vfr_runtime *r = runtime_of(slot);
	struct vfr_closing own;
	struct vfr_mapping *m;
	void *queue;

	if (!r || !entry)
		return 0;
	own = *entry;
	if (is_half_open(old) && !is_half_open(new))
		__sync_fetch_and_add(kind == VFR_KIND_INBOUND ? &r->half_open_inbound : &r->half_open, -1);
	if (is_over(old) == is_over(new))
		return 0;
	m = kind == VFR_KIND_LAN ? mapping_of(slot, &entry->key, entry->outside_port) : NULL;
	if (m)
		__sync_fetch_and_add(&m->open, is_over(new) ? -1 : 1);
	queue = closing_queue(slot, kind);
	if (is_over(new) && queue)
		bpf_map_push_elem(queue, &own, BPF_EXIST);
	return 0;
}

/* Where the LAN's side of an open conversation will go on, as nobody can guess who does not see it: where the domain
 * acknowledges it, and then what follows exactly on that. */
static __always_inline void follow_sequence(struct vfr_pkt *p, struct vfr_session *s, const struct tcphdr *tcp,
					    bool just_opened)
{
	__u32 next = s->sequence, length = p->l3_length - sizeof(struct iphdr) - p->l4_length;

	if (p->from) {
		if (p->tcp_flags & TCP_ACK && (__s32)(bpf_ntohl(tcp->ack_seq) - next) > 0)
			next = bpf_ntohl(tcp->ack_seq);
	} else if (bpf_ntohl(tcp->seq) == next || just_opened) {
		next = bpf_ntohl(tcp->seq) + length + (p->tcp_flags & TCP_FIN ? 1 : 0);
	}
	if (next != s->sequence)
		s->sequence = next;
}

/* Moves the TCP state on; the state it is in now. */
static __always_inline __u32 next_state(struct vfr_pkt *p, struct vfr_session *s)
{
	struct tcphdr *tcp = header(p->skb, L4_OFFSET, sizeof(*tcp));
	__u32 old = s->tcp_state, event, new;

	if (p->l4_proto != IPPROTO_TCP || !tcp)
		return old;
	event = tcp_event(p, s, bpf_ntohl(tcp->seq));
	if (event == VFR_TCP_PEER_SYN && is_half_open(old))
		s->sequence = bpf_ntohl(tcp->seq);
	new = tcp_step(old, event);
	if (!is_half_open(new) && kind_of(p) != VFR_KIND_NEAR)
		follow_sequence(p, s, tcp, is_half_open(old));
	if (new != old && __sync_val_compare_and_swap(&s->tcp_state, old, new) == old) {
		struct vfr_closing entry = { .key = p->key, .outside_port = p->outside_port };

		state_changed(owner_of(p), kind_of(p), &entry, old, new);
	}
	return new;
}

/* A mapping lives as long as a conversation through it may. One whose conversations are all over lives
 * no longer than the last of them to say something, whatever it was granted while they were open. */
static __always_inline void keep_mapping(struct vfr_pkt *p, __u32 tcp_state, __u64 expires)
{
	struct vfr_mapping *m = kind_of(p) == VFR_KIND_LAN ? mapping_of(p->opener, &p->key, p->outside_port) : NULL;

	if (m && (m->expires_ns < expires || (is_over(tcp_state) && !m->open)))
		m->expires_ns = expires;
}

/* Carries a living session on: its state, and how long it may now be idle. Written a second at a
 * time, so that packets on different CPUs seldom touch the same line. */
static __always_inline void refresh(struct vfr_pkt *p)
{
	struct vfr_session *s = p->session;
	__u32 old = s->tcp_state, new = next_state(p, s);
	__u64 expires = p->now + idle_time(p, new);

	if (new == old && expires < s->expires_ns + SECOND_NS)
		return;
	/* RFC 7857 7.1: what ends a conversation does not keep it alive. */
	if (new == old && is_closing(old) && p->tcp_flags & TCP_RST)
		return;
	s->expires_ns = expires;
	keep_mapping(p, new, expires);
}

/* Enters a session in its owner's table. A dead one under the same key is written over. */
__noinline enum vfr_verdict enter_session(__u32 slot, __u32 kind, const struct vfr_session_key *key,
					  const struct vfr_session *s, __u64 now)
{
	struct vfr_session_key own_key;
	struct vfr_session own;
	struct vfr_runtime *r;
	void *table;
	int err;

	table = kind == VFR_KIND_INBOUND ? bpf_map_lookup_elem(&inbound, &slot)
					 : bpf_map_lookup_elem(&sessions, &slot);
	if (!table || !key || !s)
		return VFR_DROP_NOT_READY;
	own_key = *key;
	own = *s;
	err = bpf_map_update_elem(table, &own_key, &own, BPF_ANY);
	if (err == -E2BIG) {
		sweep_sometimes(slot, now);
		err = bpf_map_update_elem(table, &own_key, &own, BPF_ANY);
	}
	if (err == -E2BIG && forget_oldest(slot, kind, now))
		err = bpf_map_update_elem(table, &own_key, &own, BPF_ANY);
	if (err)
		return err == -E2BIG ? VFR_DROP_SESSIONS_FULL : VFR_DROP_KERNEL;
	r = runtime_of(slot);
	if (r)
		__sync_fetch_and_add(&r->begun, 1);
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict new_session(struct vfr_pkt *p)
{
	__u32 state = p->l4_proto == IPPROTO_TCP ? VFR_TCP_OPENING : VFR_TCP_NONE;
	struct vfr_session s = {
		.expires_ns = p->now + idle_time(p, state),
		.policy = p->policy,
		.peer_generation = !p->inbound && p->to ? p->to->generation : 0,
		.peer = p->inbound ? VFR_NODE_LAN : p->to_node,
		.outside_port = p->outside_port,
		.tcp_state = state,
	};

	return enter_session(owner_of(p), kind_of(p), &p->key, &s, p->now);
}

/* One more half-open conversation. What the LAN opens is noted in its order as well. */
static __always_inline void note_opening(struct vfr_pkt *p)
{
	struct vfr_closing entry = { .key = p->key, .outside_port = p->outside_port };
	struct vfr_runtime *r = runtime_of(owner_of(p));
	void *queue = closing_queue(owner_of(p), VFR_KIND_ENTERING);

	if (r)
		__sync_fetch_and_add(p->inbound ? &r->half_open_inbound : &r->half_open, 1);
	if (p->inbound && queue)
		bpf_map_push_elem(queue, &entry, BPF_EXIST);
}

/* Whether one more conversation may begin with a domain that takes only so many, whoever begins it. Of the LAN's,
 * admit() sees to that. */
static __always_inline bool may_enter(const struct vfr_pkt *p)
{
	struct vfr_runtime *r = p->from && p->to && p->to->new_in_per_s ? runtime_of(p->to_node) : NULL;

	return !r || within_rate(&r->entered_until_ns, p->now, p->to->new_in_per_s);
}

/* A conversation begins: within its quotas, with a port if it goes to the LAN, and all or nothing. */
static __always_inline enum vfr_verdict begin(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = within_limit(p->rule, p->now) && may_enter(p)
					   ? admit(owner_of(p), p->l4_proto, p->inbound, p->now)
					   : VFR_DROP_TOO_FAST;

	if (verdict == VFR_CONTINUE && !p->inbound && !p->to)
		verdict = map_port(p, p->now + idle_time(p, VFR_TCP_OPENING));
	if (verdict != VFR_CONTINUE)
		return verdict;
	verdict = new_session(p);
	if (verdict != VFR_CONTINUE && kind_of(p) == VFR_KIND_LAN)
		unmap_port(p->from_slot, &p->key, p->outside_port, p->new_mapping);
	if (verdict == VFR_CONTINUE && p->l4_proto == IPPROTO_TCP)
		note_opening(p);
	p->begun = verdict == VFR_CONTINUE;
	return verdict;
}

/* State for a packet that policy let through: a new conversation's, or one more second of an old. An
 * ICMP error never changes any (RFC 5508 REQ-6), and a later fragment follows its first. */
static __always_inline enum vfr_verdict keep_state(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = VFR_CONTINUE;

	if (p->later || p->error)
		return VFR_CONTINUE;
	if (p->session)
		refresh(p);
	else
		verdict = begin(p);
	return verdict == VFR_CONTINUE && p->first ? lead(p) : verdict;
}

/* UDP that is still to be cut may be cut into fragments (a VM's UFO), whatever its DF says. */
static __always_inline bool may_be_fragments(const struct vfr_pkt *p)
{
	return p->first || !p->dont_fragment || (p->skb->gso_size && p->l4_proto == IPPROTO_UDP);
}

/* An identification for a packet that may be put together from fragments: domains choose theirs
 * without knowing of each other, and would meet behind one address (RFC 6864 5.3.1, RFC 7857 10).
 * The kernel counts on from it for each segment that it cuts. */
static __always_inline void choose_id(struct vfr_pkt *p)
{
	__u32 place = (p->dst * 2654435761U) >> 22;
	__u32 *next = bpf_map_lookup_elem(&identifications, &place);

	if (next && !p->later && !p->to && may_be_fragments(p))
		p->new_id = bpf_htons(__sync_fetch_and_add(next, segments(p)));
}

/* One fact a call, and the kernel knows what each means for a checksum that is still to be
 * completed (CHECKSUM_PARTIAL): an address is in the pseudo header, a port is not. */
static __always_inline enum vfr_verdict fix_l4_checksum(struct vfr_pkt *p, __be32 old_ip, __be32 new_ip,
							__be16 old_port, __be16 new_port)
{
	__u64 udp = p->l4_proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 offset = l4_checksum_offset(p->l4_proto);

	if (p->l4_proto != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(p->skb, offset, old_ip, new_ip, udp | BPF_F_PSEUDO_HDR | sizeof(new_ip)))
		return VFR_DROP_KERNEL;
	if (old_port != new_port &&
	    bpf_l4_csum_replace(p->skb, offset, old_port, new_port, udp | sizeof(new_port)))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

/* Writes a new port, or echo identifier, and makes the L4 checksum say so. Not for what has no L4
 * header of its own conversation: later fragments, and ICMP errors. */
static __always_inline enum vfr_verdict rewrite_l4(struct vfr_pkt *p, __u32 port_at, __be32 old_ip, __be32 new_ip,
						   __be16 old_port, __be16 new_port)
{
	enum vfr_verdict verdict;

	if (p->later || p->error)
		return VFR_CONTINUE;
	if (p->l4_proto == IPPROTO_ICMP)
		port_at = L4_OFFSET + offsetof(struct vfr_icmp, id);
	verdict = fix_l4_checksum(p, old_ip, new_ip, old_port, new_port);
	if (verdict != VFR_CONTINUE)
		return verdict;
	return bpf_skb_store_bytes(p->skb, port_at, &new_port, sizeof(new_port), 0) ? VFR_DROP_KERNEL : VFR_CONTINUE;
}

static __always_inline enum vfr_verdict rewrite_address(struct vfr_pkt *p, __u32 at, __be32 old, __be32 new)
{
	if (bpf_l3_csum_replace(p->skb, L3_OFFSET + offsetof(struct iphdr, check), old, new, sizeof(new)) ||
	    bpf_skb_store_bytes(p->skb, at, &new, sizeof(new), 0))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict rewrite_id(struct vfr_pkt *p)
{
	if (p->new_id == p->id)
		return VFR_CONTINUE;
	if (bpf_l3_csum_replace(p->skb, L3_OFFSET + offsetof(struct iphdr, check), p->id, p->new_id,
				sizeof(p->id)) ||
	    bpf_skb_store_bytes(p->skb, L3_OFFSET + offsetof(struct iphdr, id), &p->new_id, sizeof(p->id), 0))
		return VFR_DROP_KERNEL;
	return VFR_CONTINUE;
}

/* To the LAN: the domain's address and port become domain 0's and the outside one. */
static __always_inline enum vfr_verdict translate_source(struct vfr_pkt *p)
{
	__be32 address = p->config->outside_address;
	enum vfr_verdict verdict = rewrite_l4(p, L4_OFFSET + offsetof(struct udphdr, source), p->src, address,
					      p->sport, p->outside_port);

	if (verdict == VFR_CONTINUE)
		verdict = rewrite_address(p, L3_OFFSET + offsetof(struct iphdr, saddr), p->src, address);
	return verdict == VFR_CONTINUE ? rewrite_id(p) : verdict;
}

/* From the LAN: domain 0's address and the outside port become the domain's own. */
static __always_inline enum vfr_verdict translate_target(struct vfr_pkt *p)
{
	__be32 address = p->to->address;
	enum vfr_verdict verdict = rewrite_l4(p, L4_OFFSET + offsetof(struct udphdr, dest), p->dst, address,
					      p->dport, p->inside_port);

	return verdict == VFR_CONTINUE
		       ? rewrite_address(p, L3_OFFSET + offsetof(struct iphdr, daddr), p->dst, address)
		       : verdict;
}

static __always_inline enum vfr_verdict translate(struct vfr_pkt *p)
{
	enum vfr_verdict verdict;

	choose_id(p);
	verdict = keep_state(p);
	if (verdict != VFR_CONTINUE || (p->to && p->from))
		return verdict;
	if (p->error)
		verdict = translate_quoted(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	return p->to ? translate_target(p) : translate_source(p);
}

#endif
