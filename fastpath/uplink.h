/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * uplink: which frames from the LAN are ours? Only those to an outside port that a mapping or a
 * forward holds, plus what nobody may send here: the router's own range, ports of our NAT range
 * that neither we nor the host own, and redirects. All else belongs to the host and passes untouched, and so does what
 * comes to a mapping's port as part of none of its conversations, if a socket of the host's waits for it.
 */
#ifndef VFR_UPLINK_H
#define VFR_UPLINK_H

#include "fragment.h"
#include "host.h"
#include "related.h"

static __always_inline bool in_nat_range(const struct vfr_config *config, __be16 port)
{
	__u16 number = bpf_ntohs(port);

	return number >= config->nat_low && number <= config->nat_high;
}

/* The router's own range is never on the LAN, neither asked for nor claimed. */
static __always_inline enum vfr_verdict uplink_arp(struct vfr_pkt *p)
{
	struct vfr_arp *arp = header(p->skb, L3_OFFSET, sizeof(*arp));

	if (arp && (in_pool(p->config, arp->sender_ip) || in_pool(p->config, arp->target_ip)))
		return VFR_DROP_MARTIAN;
	return VFR_NOT_OURS;
}

/* Whether a socket of the host's waits for the packet. The host pings too, and its identifiers are its own
 * choice. */
static __always_inline bool is_hosts(struct vfr_pkt *p)
{
	return p->l4_proto == IPPROTO_ICMP || host_owns(p->skb, p->l4_proto, p->src, p->sport, p->dport);
}

/* Nobody holds the port: in our range it is either the host's after all, or nobody's. */
static __always_inline enum vfr_verdict uplink_miss(struct vfr_pkt *p)
{
	return in_nat_range(p->config, p->dport) && !is_hosts(p) ? VFR_DROP_UNSOLICITED : VFR_NOT_OURS;
}

/* A packet to a port that is ours: only now is it held to what we hold packets to. */
static __always_inline enum vfr_verdict uplink_ours(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = guard_ip_header(p);

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (is_martian(p->src) || is_multicast(p->src) || is_link_local(p->src))
		return VFR_DROP_MARTIAN;
	return p->src == p->dst && !p->hairpin ? VFR_DROP_MARTIAN : guard_l4(p);
}

/* Finds whose the port is, and the session, or the right to begin one: that has nobody who bears a
 * domain's address. */
static __always_inline enum vfr_verdict uplink_session(struct vfr_pkt *p, struct vfr_outside *entry)
{
	bool forward = entry->holder == VFR_PORT_FORWARD;
	enum vfr_verdict verdict;

	p->to_node = entry->slot;
	p->inside_port = entry->inside_port;
	p->to = domain_in(p->to_node);
	if (!p->to)
		return VFR_DROP_NO_DOMAIN;
	verdict = forward ? session_to_forward(p) : session_of_mapping(p);
	return !p->session && bpf_map_lookup_elem(&addresses, &p->src) ? VFR_DROP_MARTIAN : verdict;
}

/* Ports as far as they are needed to tell whose the packet is. False if it can't be ours. */
static __always_inline bool uplink_ports(struct vfr_pkt *p)
{
	struct l4_start l4;

	if (bpf_skb_load_bytes(p->skb, L3_OFFSET + p->ihl * 4, &l4, sizeof(l4)))
		return false;
	p->sport = l4.word[0];
	p->dport = l4.word[1];
	if (p->l4_proto != IPPROTO_ICMP)
		return true;
	p->icmp_type = *(__u8 *)&l4;
	p->error = is_icmp_error(p->icmp_type);
	p->sport = icmp_service(p->icmp_type);
	p->dport = l4.word[2];
	return is_icmp_reply(p->icmp_type) || (p->error && p->ihl == 5);
}

/* Whose an ICMP error is, the packet that it quotes says. The address it comes from may be any
 * router's, but one that is no martian, which can't be told any more behind this. */
static __always_inline enum vfr_verdict uplink_error(struct vfr_pkt *p)
{
	__be32 from = p->src;
	struct vfr_outside *entry;
	enum vfr_verdict verdict;

	if (p->fragment || take_quoted(p) != VFR_CONTINUE)
		return VFR_NOT_OURS;
	entry = outside_port(space_of(p->l4_proto), p->dport);
	if (!entry || entry->holder == VFR_PORT_FREE)
		return VFR_NOT_OURS;
	verdict = guard_ip_header(p);
	if (verdict == VFR_CONTINUE)
		verdict = check_offload(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (is_martian(from) || is_multicast(from) || is_link_local(from) || bpf_map_lookup_elem(&addresses, &from))
		return VFR_DROP_MARTIAN;
	verdict = check_quoted(p->skb, p->l3_length, p->quoted_l4);
	return verdict == VFR_CONTINUE ? uplink_session(p, entry) : verdict;
}

static __always_inline enum vfr_verdict uplink_port(struct vfr_pkt *p)
{
	struct vfr_outside *entry;
	enum vfr_verdict verdict;

	if (!uplink_ports(p))
		return VFR_NOT_OURS;
	if (p->error)
		return uplink_error(p);
	entry = outside_port(space_of(p->l4_proto), p->dport);
	if (!entry || entry->holder == VFR_PORT_FREE)
		return uplink_miss(p);
	verdict = uplink_ours(p);
	if (verdict == VFR_CONTINUE)
		verdict = uplink_session(p, entry);
	/* A mapping may hold a port that a program of the host has bound since. */
	return verdict == VFR_DROP_UNSOLICITED && is_hosts(p) ? VFR_NOT_OURS : verdict;
}

/* The host's own, as far as can be told: it puts its fragments together itself. */
static __always_inline enum vfr_verdict for_host(struct vfr_pkt *p)
{
	if (p->sorted) {
		p->skb->mark = VFR_MARK_HOST;
		p->action = bpf_redirect(p->config->uplink_ifindex, BPF_F_INGRESS);
	}
	return VFR_NOT_OURS;
}

/* The first fragment says whose the datagram is. A table that is full of what a flood left there must
 * not cost the host its own, so they pass then. */
static __always_inline enum vfr_verdict uplink_first(struct vfr_pkt *p, struct vfr_fragment *note)
{
	struct vfr_fragment fresh = { .way = VFR_WAY_HOST };
	enum vfr_verdict verdict;

	if (note && note->way == VFR_WAY_SORT && !p->sorted)
		return sort(p, note);
	verdict = uplink_port(p);
	if (verdict != VFR_NOT_OURS)
		return verdict;
	note_fragment(p, &fresh);
	return for_host(p);
}

static __always_inline enum vfr_verdict uplink_later(struct vfr_pkt *p, struct vfr_fragment *note)
{
	enum vfr_verdict verdict;

	if (note && note->way == VFR_WAY_HOST)
		return for_host(p);
	if (note && note->way == VFR_WAY_GO) {
		verdict = uplink_ours(p);
		return verdict == VFR_CONTINUE ? follow(p, note) : verdict;
	}
	if (p->sorted)
		return VFR_DROP_FRAGMENT;
	verdict = sort(p, note);
	return verdict == VFR_DROP_FRAGMENTS_FULL || verdict == VFR_DROP_NO_SORTER ? VFR_NOT_OURS : verdict;
}

/* A redirect would bend the way of what domains send: the host is their router while NAT is on, and routers do not
 * listen to redirects (RFC 1812 5.2.7.2). A host that does not forward would. */
static __always_inline bool is_redirect(struct vfr_pkt *p)
{
	__u8 type;

	return p->l4_proto == IPPROTO_ICMP && !p->later &&
	       !bpf_skb_load_bytes(p->skb, L3_OFFSET + p->ihl * 4, &type, sizeof(type)) && type == ICMP_REDIRECT;
}

static __always_inline enum vfr_verdict uplink_packet(struct vfr_pkt *p)
{
	struct vfr_fragment *note;

	if (in_pool(p->config, p->src) || in_pool(p->config, p->dst))
		return VFR_DROP_MARTIAN;
	if (is_redirect(p))
		return VFR_DROP_ICMP_TYPE;
	if (!p->config->outside_address || p->dst != p->config->outside_address)
		return VFR_NOT_OURS;
	if (!has_ports(p->l4_proto))
		return VFR_NOT_OURS;
	if (!p->fragment)
		return uplink_port(p);
	/* What would be taken for a domain's own when the sorter gives it back. */
	if (bpf_map_lookup_elem(&addresses, &p->src))
		return VFR_DROP_MARTIAN;
	note = find_fragment(p);
	return p->first ? uplink_first(p, note) : uplink_later(p, note);
}

/* Continues only for a packet to one of our ports that belongs to a session, or may begin one. */
static __always_inline enum vfr_verdict uplink(struct vfr_pkt *p)
{
	if (parse_ethernet(p) != VFR_CONTINUE || p->skb->vlan_present)
		return VFR_NOT_OURS;
	if (p->l3_proto == bpf_htons(ETH_P_ARP))
		return uplink_arp(p);
	if (p->l3_proto != bpf_htons(ETH_P_IP) || parse_ip(p) != VFR_CONTINUE)
		return VFR_NOT_OURS;
	if (p->skb->pkt_type == PACKET_HOST || p->hairpin)
		return uplink_packet(p);
	/* The host's stack would believe one by link-layer broadcast, too. */
	return p->skb->pkt_type != PACKET_OTHERHOST && is_redirect(p) ? VFR_DROP_ICMP_TYPE : VFR_NOT_OURS;
}

#endif
