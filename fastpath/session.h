/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * session: which conversation does the packet belong to, and what does it say about its state?
 *
 * A session lies in the map of the one who opened it, under (remote, remote port, inside port,
 * protocol) as the opener sees them. So a packet of the opener is looked up in its own map as it
 * stands, and an answer in the receiver's map turned round. Nothing runs a timer: each session says
 * when it expires, and past that it is as if it were not there.
 */
#ifndef VFR_SESSION_H
#define VFR_SESSION_H

#include "guard.h"
#include "policy.h"

#define SECOND_NS 1000000000ULL
#define TCP_COLUMNS 16 /* events, and what else a mask leaves */
_Static_assert((int)VFR_TCP_EVENTS <= TCP_COLUMNS, "a mask must leave every event as it is");

/* What a state becomes, by who sent what. A SYN that begins anew never gets here (begins_anew). In
 * VFR_TCP_ANSWERED the opener's "other" is one that acknowledges the peer's SYN. */
static const __u8 tcp_next[VFR_TCP_STATES][TCP_COLUMNS] = {
	/*                       opener SYN              FIN                 RST             other                    peer SYN                FIN                 RST             other                    abort */
	[VFR_TCP_NONE]        = { VFR_TCP_OPENING,     VFR_TCP_NONE,       VFR_TCP_NONE,   VFR_TCP_NONE,        VFR_TCP_NONE,        VFR_TCP_NONE,       VFR_TCP_NONE,   VFR_TCP_NONE,        VFR_TCP_NONE },
	[VFR_TCP_OPENING]     = { VFR_TCP_OPENING,     VFR_TCP_OPENING,    VFR_TCP_CLOSED, VFR_TCP_OPENING,     VFR_TCP_ANSWERED,    VFR_TCP_OPENING,    VFR_TCP_CLOSED, VFR_TCP_OPENING,     VFR_TCP_CLOSED },
	[VFR_TCP_ANSWERED]    = { VFR_TCP_ANSWERED,    VFR_TCP_ANSWERED,   VFR_TCP_CLOSED, VFR_TCP_ESTABLISHED, VFR_TCP_ANSWERED,    VFR_TCP_ANSWERED,   VFR_TCP_CLOSED, VFR_TCP_ANSWERED,    VFR_TCP_CLOSED },
	[VFR_TCP_ESTABLISHED] = { VFR_TCP_ESTABLISHED, VFR_TCP_FIN_OPENER, VFR_TCP_RESET,  VFR_TCP_ESTABLISHED, VFR_TCP_ESTABLISHED, VFR_TCP_FIN_PEER,   VFR_TCP_RESET,  VFR_TCP_ESTABLISHED, VFR_TCP_CLOSED },
	[VFR_TCP_FIN_OPENER]  = { VFR_TCP_FIN_OPENER,  VFR_TCP_FIN_OPENER, VFR_TCP_RESET,  VFR_TCP_FIN_OPENER,  VFR_TCP_FIN_OPENER,  VFR_TCP_CLOSED,     VFR_TCP_RESET,  VFR_TCP_FIN_OPENER,  VFR_TCP_CLOSED },
	[VFR_TCP_FIN_PEER]    = { VFR_TCP_FIN_PEER,    VFR_TCP_CLOSED,     VFR_TCP_RESET,  VFR_TCP_FIN_PEER,    VFR_TCP_FIN_PEER,    VFR_TCP_FIN_PEER,   VFR_TCP_RESET,  VFR_TCP_FIN_PEER,    VFR_TCP_CLOSED },
	[VFR_TCP_CLOSED]      = { VFR_TCP_CLOSED,      VFR_TCP_CLOSED,     VFR_TCP_CLOSED, VFR_TCP_CLOSED,      VFR_TCP_CLOSED,      VFR_TCP_CLOSED,     VFR_TCP_CLOSED, VFR_TCP_CLOSED,      VFR_TCP_CLOSED },
	[VFR_TCP_RESET]       = { VFR_TCP_RESET,       VFR_TCP_FIN_OPENER, VFR_TCP_RESET,  VFR_TCP_ESTABLISHED, VFR_TCP_ESTABLISHED, VFR_TCP_FIN_PEER,   VFR_TCP_RESET,  VFR_TCP_ESTABLISHED, VFR_TCP_CLOSED },
};

static __always_inline bool is_closing(__u32 tcp_state)
{
	return tcp_state >= VFR_TCP_CLOSED;
}

/* Nobody will miss it: a conversation in any other state may still be somebody's. */
static __always_inline bool is_over(__u32 tcp_state)
{
	return tcp_state == VFR_TCP_CLOSED;
}

static __always_inline bool is_half_open(__u32 tcp_state)
{
	return tcp_state == VFR_TCP_OPENING || tcp_state == VFR_TCP_ANSWERED;
}

/* Whether the opener's packet acknowledges the peer's SYN, as only one who received it can
 * (RFC 9293 3.4). Data may have followed it, but not much. */
static __always_inline bool acknowledges(struct vfr_pkt *p, __u32 peer_isn)
{
	struct tcphdr *tcp = header(p->skb, L4_OFFSET, sizeof(*tcp));

	return tcp && p->tcp_flags & TCP_ACK && bpf_ntohl(tcp->ack_seq) - peer_isn - 1 < 1 << 20;
}

static __always_inline __u32 tcp_event(struct vfr_pkt *p, const struct vfr_session *s, __u32 sequence)
{
	__u32 side = p->reply ? VFR_TCP_PEER_SYN : VFR_TCP_OPENER_SYN;

	if (p->tcp_flags & TCP_RST)
		return p->from || (sequence == s->sequence && !is_half_open(s->tcp_state)) ? VFR_TCP_ABORT : side + 2;
	if (s->tcp_state == VFR_TCP_ANSWERED && !p->reply)
		return acknowledges(p, s->sequence) ? VFR_TCP_OPENER_OTHER : VFR_TCP_OPENER_SYN;
	if (p->tcp_flags & TCP_SYN)
		return side;
	return p->tcp_flags & TCP_FIN ? side + 1 : side + 3;
}

static __always_inline __u32 tcp_step(__u32 state, __u32 event)
{
	/* The mask says nothing new to the reader; it is what the verifier can follow. It must also see the
	 * check of the very register that is used: 6.1 forgets it for a copy on the stack. */
	event &= TCP_COLUMNS - 1;
	barrier_var(event);
	barrier_var(state);
	return state < VFR_TCP_STATES ? tcp_next[state][event] : state;
}

/* How long the conversation may be silent from now on. */
static __always_inline __u64 idle_time(const struct vfr_pkt *p, __u32 tcp_state)
{
	const struct vfr_timers *timers = &p->config->timers;
	__u32 seconds;

	if (p->l4_proto == IPPROTO_ICMP)
		seconds = timers->icmp_s;
	else if (p->l4_proto != IPPROTO_TCP)
		seconds = p->l4_proto == IPPROTO_UDP && p->service == bpf_htons(53) ? timers->dns_s : timers->udp_s;
	else if (is_half_open(tcp_state))
		seconds = timers->tcp_opening_s;
	else
		seconds = is_closing(tcp_state) ? timers->tcp_closing_s : timers->tcp_established_s;
	return seconds * SECOND_NS;
}

/* Whether the packet may begin a conversation. */
static __always_inline bool is_opening(const struct vfr_pkt *p)
{
	if (p->error)
		return false;
	if (p->l4_proto == IPPROTO_TCP)
		return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	return p->l4_proto != IPPROTO_ICMP || is_icmp_request(p->icmp_type);
}

/* Whether it begins its conversation anew, through policy, since the last one under this key is over. After a RST
 * that may be forged it is not, or a SYN could be forged as well. */
static __always_inline bool begins_anew(const struct vfr_pkt *p, const struct vfr_session *s)
{
	return is_opening(p) && is_over(s->tcp_state);
}

/* What becomes of a packet of no conversation that begins none. */
static __always_inline enum vfr_verdict orphan(const struct vfr_pkt *p, enum vfr_verdict verdict)
{
	return p->error ? VFR_DROP_ICMP_ERROR : verdict;
}

/* The key of the packet's session if its sender opened it, or, turned round, if its receiver did. */
static __always_inline struct vfr_session_key session_key(const struct vfr_pkt *p, bool reply)
{
	return (struct vfr_session_key){
		.remote = reply ? p->src : p->dst,
		.remote_port = reply ? p->sport : p->dport,
		.inside_port = reply ? p->dport : p->sport,
		.protocol = p->l4_proto,
	};
}

/* The living session under `key` in `slot`'s map of `table`, or NULL. */
static __always_inline struct vfr_session *find_live(void *table, __u32 slot,
						     const struct vfr_session_key *key, __u64 now)
{
	void *inner = bpf_map_lookup_elem(table, &slot);
	struct vfr_session *s = inner ? bpf_map_lookup_elem(inner, key) : NULL;

	return s && s->expires_ns > now ? s : NULL;
}

/* A domain is still the one a session was made with only if its generation is. */
static __always_inline enum vfr_verdict check_peer(struct vfr_pkt *p, const struct vfr_session *s)
{
	p->to_node = s->peer;
	if (s->peer == VFR_NODE_LAN)
		return p->config->uplink_ifindex ? VFR_CONTINUE : VFR_DROP_NO_UPLINK;
	p->to = domain_in(s->peer);
	return p->to && p->to->generation == s->peer_generation ? VFR_CONTINUE : VFR_DROP_NO_DOMAIN;
}

/* To the LAN address: a port of ours must be meant, and who holds it is whom the policy is asked about. */
static __always_inline enum vfr_verdict find_hairpin(struct vfr_pkt *p)
{
	struct vfr_outside *entry = outside_port(space_of(p->l4_proto), p->dport);

	p->hairpin = true;
	if (!entry || entry->holder == VFR_PORT_FREE)
		return VFR_DROP_HAIRPIN;
	p->target = entry->slot;
	p->service = entry->inside_port;
	return VFR_CONTINUE;
}

/* The sender opened it: its own map, the packet as it stands. */
static __always_inline enum vfr_verdict session_as_opener(struct vfr_pkt *p)
{
	struct vfr_session_key key = session_key(p, false);
	struct vfr_session *s = find_live(&sessions, p->from_slot, &key, p->now);

	if (!s || begins_anew(p, s))
		return VFR_CONTINUE;
	p->session = s;
	p->key = key;
	p->opener = p->from_slot;
	p->target = s->peer;
	p->service = p->dport;
	p->outside_port = s->outside_port;
	if (s->peer == VFR_NODE_LAN && p->dst == p->config->outside_address && find_hairpin(p))
		return VFR_DROP_HAIRPIN;
	return check_peer(p, s);
}

/* The domain it goes to opened it. */
static __always_inline void session_as_peer(struct vfr_pkt *p)
{
	struct vfr_session_key key = session_key(p, true);
	struct vfr_session *s = find_live(&sessions, p->to_node, &key, p->now);

	if (!s || s->peer != p->from_slot || s->peer_generation != p->from->generation)
		return;
	p->session = s;
	p->key = key;
	p->reply = true;
	p->opener = p->to_node;
	p->target = p->from_slot;
	p->service = p->sport;
}

/* The LAN opened it, through a forward: the domain's @inbound, under the domain's view. */
static __always_inline void session_of_forward(struct vfr_pkt *p)
{
	struct vfr_session_key key = session_key(p, false);
	struct vfr_session *s = find_live(&inbound, p->from_slot, &key, p->now);

	if (!s)
		return;
	p->session = s;
	p->key = key;
	p->reply = true;
	p->inbound = true;
	p->opener = VFR_NODE_LAN;
	p->target = p->from_slot;
	p->service = p->sport;
	p->outside_port = s->outside_port;
}

/* To the LAN, as far as such an address may be spoken to there. */
static __always_inline enum vfr_verdict to_lan(struct vfr_pkt *p)
{
	const struct vfr_config *config = p->config;

	p->to_node = VFR_NODE_LAN;
	if (!has_ports(p->l4_proto))
		return VFR_DROP_PROTOCOL;
	if (in_pool(config, p->dst) || is_link_local(p->dst) || p->from_slot == 0)
		return VFR_DROP_NO_DOMAIN;
	if (!config->uplink_ifindex)
		return VFR_DROP_NO_UPLINK;
	p->hairpin = p->dst == config->outside_address;
	if (in_net(p->dst, config->lan_base, config->lan_mask) && ~config->lan_mask &&
	    ((p->dst & ~config->lan_mask) == ~config->lan_mask || p->dst == config->lan_base))
		return VFR_DROP_MULTICAST;
	return VFR_CONTINUE;
}

/* Where a packet from a VIF goes when no session says so: to whoever has the address. */
static __always_inline enum vfr_verdict route(struct vfr_pkt *p)
{
	__u32 *slot = bpf_map_lookup_elem(&addresses, &p->dst);

	if (!slot)
		return to_lan(p);
	p->to_node = *slot;
	p->to = domain_in(*slot);
	return p->to ? VFR_CONTINUE : VFR_DROP_NO_DOMAIN;
}

/* A packet that begins something: the sender opens it to where `route` led. */
static __always_inline enum vfr_verdict open_from_vif(struct vfr_pkt *p)
{
	if (!is_opening(p))
		return orphan(p, VFR_DROP_NO_SESSION);
	p->key = session_key(p, false);
	p->opener = p->from_slot;
	p->target = p->to_node;
	p->service = p->dport;
	return p->hairpin ? find_hairpin(p) : VFR_CONTINUE;
}

static __always_inline enum vfr_verdict session_from_vif(struct vfr_pkt *p)
{
	bool reply = p->l4_proto == IPPROTO_ICMP && is_icmp_reply(p->icmp_type);
	bool request = p->l4_proto == IPPROTO_ICMP && !reply;
	enum vfr_verdict verdict = VFR_CONTINUE;

	if (!reply)
		verdict = session_as_opener(p);
	if (verdict != VFR_CONTINUE || p->session)
		return verdict;
	/* Before the addresses are asked: no conversation with the LAN takes more than two look-ups. */
	if (!in_pool(p->config, p->dst))
		session_of_forward(p);
	if (p->session)
		return to_lan(p);
	verdict = route(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (p->to && !request)
		session_as_peer(p);
	return p->session ? VFR_CONTINUE : open_from_vif(p);
}

/* An answer from the LAN to a domain's mapping: only from somebody the domain has spoken to
 * (address and port dependent filtering, RFC 4787 REQ-8). */
static __always_inline enum vfr_verdict session_of_mapping(struct vfr_pkt *p)
{
	struct vfr_session_key key = session_key(p, true);
	struct vfr_session *s;

	key.inside_port = p->inside_port;
	s = find_live(&sessions, p->to_node, &key, p->now);
	if (!s || s->peer != VFR_NODE_LAN || s->outside_port != p->dport)
		return orphan(p, VFR_DROP_UNSOLICITED);
	p->session = s;
	p->key = key;
	p->reply = true;
	p->opener = p->to_node;
	p->target = VFR_NODE_LAN;
	p->service = p->sport;
	p->outside_port = p->dport;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict session_to_forward(struct vfr_pkt *p)
{
	struct vfr_session_key key = session_key(p, true);
	struct vfr_session *s;

	key.inside_port = p->inside_port;
	p->key = key;
	p->inbound = true;
	p->opener = VFR_NODE_LAN;
	p->target = p->to_node;
	p->service = p->inside_port;
	p->outside_port = p->dport;
	s = find_live(&inbound, p->to_node, &key, p->now);
	if (s && s->outside_port == p->dport && !begins_anew(p, s))
		p->session = s;
	return p->session || is_opening(p) ? VFR_CONTINUE : orphan(p, VFR_DROP_NO_SESSION);
}

#endif
