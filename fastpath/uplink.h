/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * uplink: which frames from the LAN are ours? Only those to an outside port that a mapping or a
 * forward holds, plus what nobody may send here: the router's own range, and ports of our NAT range
 * that neither we nor the host own. All else belongs to the host and passes untouched.
 */
#ifndef VFR_UPLINK_H
#define VFR_UPLINK_H

#include "session.h"

/* First eight bytes of any L4 header, enough for ports or an echo identifier. */
struct l4_start {
	__be16 word[4];
};

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

/* Whether a socket of the host's waits for this packet. Asked only on a miss in the NAT range. */
static __always_inline bool host_owns(struct vfr_pkt *p)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = p->src, .daddr = p->dst, .sport = p->sport, .dport = p->dport },
	};
	struct bpf_sock *sk;

	if (p->l4_proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(p->skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(p->skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* An ICMP error is ours if the packet that it quotes left by one of our ports. */
static __always_inline enum vfr_verdict uplink_icmp_error(struct vfr_pkt *p, __u32 l4_offset)
{
	struct iphdr quoted;
	struct vfr_outside *entry;
	__be16 port;
	__u32 at = l4_offset + sizeof(struct vfr_icmp);

	if (bpf_skb_load_bytes(p->skb, at, &quoted, sizeof(quoted)) || quoted.saddr != p->dst)
		return VFR_NOT_OURS;
	at += quoted.ihl * 4;
	if (quoted.protocol == IPPROTO_ICMP)
		at += offsetof(struct vfr_icmp, id);
	if (bpf_skb_load_bytes(p->skb, at, &port, sizeof(port)))
		return VFR_NOT_OURS;
	p->l4_proto = quoted.protocol;
	entry = outside_port(port_space(p), port);
	return entry && entry->holder != VFR_PORT_FREE ? VFR_DROP_ICMP_ERROR : VFR_NOT_OURS;
}

/* Nobody holds the port: in our range it is either the host's after all, or nobody's. */
static __always_inline enum vfr_verdict uplink_miss(struct vfr_pkt *p)
{
	if (p->l4_proto == IPPROTO_ICMP || !in_nat_range(p->config, p->dport) || host_owns(p))
		return VFR_NOT_OURS;
	return VFR_DROP_UNSOLICITED;
}

/* A packet to a port that is ours: only now is it held to what we hold packets to. */
static __always_inline enum vfr_verdict uplink_ours(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = guard_ip_header(p);

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (is_martian(p->src) || is_multicast(p->src) || is_link_local(p->src) || p->src == p->dst)
		return VFR_DROP_MARTIAN;
	if (p->fragment)
		return VFR_DROP_FRAGMENT;
	return p->ttl > 1 ? parse_l4(p) : VFR_DROP_TTL;
}

/* Finds whose the port is, and the session, or the right to begin one. */
static __always_inline enum vfr_verdict uplink_session(struct vfr_pkt *p, struct vfr_outside *entry)
{
	bool forward = entry->holder == VFR_PORT_FORWARD;

	p->to_node = entry->slot;
	p->inside_port = entry->inside_port;
	p->to = domain_in(p->to_node);
	if (!p->to)
		return VFR_DROP_NO_DOMAIN;
	return forward ? session_to_forward(p) : session_of_mapping(p);
}

static __always_inline enum vfr_verdict uplink_port(struct vfr_pkt *p)
{
	__u32 l4_offset = L3_OFFSET + p->ihl * 4;
	struct vfr_outside *entry;
	enum vfr_verdict verdict;
	struct l4_start l4;

	if (p->l4_proto != IPPROTO_TCP && p->l4_proto != IPPROTO_UDP && p->l4_proto != IPPROTO_ICMP)
		return VFR_NOT_OURS;
	if (p->fragment & bpf_htons(0x1fff) || bpf_skb_load_bytes(p->skb, l4_offset, &l4, sizeof(l4)))
		return VFR_NOT_OURS;
	p->sport = l4.word[0];
	p->dport = l4.word[1];
	if (p->l4_proto == IPPROTO_ICMP) {
		p->icmp_type = *(__u8 *)&l4;
		if (is_icmp_error(p->icmp_type))
			return uplink_icmp_error(p, l4_offset);
		if (p->icmp_type != ICMP_ECHOREPLY)
			return VFR_NOT_OURS;
		p->sport = 0;
		p->dport = l4.word[2];
	}
	entry = outside_port(port_space(p), p->dport);
	if (!entry || entry->holder == VFR_PORT_FREE)
		return uplink_miss(p);
	verdict = uplink_ours(p);
	if (verdict == VFR_CONTINUE)
		verdict = uplink_session(p, entry);
	/* The host pings too, and its identifiers are its own choice. */
	return verdict == VFR_DROP_UNSOLICITED && p->l4_proto == IPPROTO_ICMP ? VFR_NOT_OURS : verdict;
}

static __always_inline enum vfr_verdict uplink_ip(struct vfr_pkt *p)
{
	if (parse_ip(p) != VFR_CONTINUE)
		return VFR_NOT_OURS;
	if (in_pool(p->config, p->src) || in_pool(p->config, p->dst))
		return VFR_DROP_MARTIAN;
	if (!p->config->outside_address || p->dst != p->config->outside_address)
		return VFR_NOT_OURS;
	return uplink_port(p);
}

/* Continues only for a packet to one of our ports that belongs to a session, or may begin one. */
static __always_inline enum vfr_verdict uplink(struct vfr_pkt *p)
{
	if (parse_ethernet(p) != VFR_CONTINUE || p->skb->vlan_present)
		return VFR_NOT_OURS;
	if (p->l3_proto == bpf_htons(ETH_P_ARP))
		return uplink_arp(p);
	if (p->l3_proto != bpf_htons(ETH_P_IP) || p->skb->pkt_type != 0 /* PACKET_HOST */)
		return VFR_NOT_OURS;
	return uplink_ip(p);
}

#endif
