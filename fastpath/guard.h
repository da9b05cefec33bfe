/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guard: is the frame what its sender may send at all? Identity is the VIF it came in on: source
 * MAC, source IP and ARP sender must be that domain's own, as its guest knows them. Nothing here depends on rules.
 */
#ifndef VFR_GUARD_H
#define VFR_GUARD_H

#include "offload.h"

#define ETHERTYPE_LEAST 0x0600 /* IEEE 802.3 3.2.6: below, it is a length */

/* What every domain sees as the MAC of the router, on every VIF. */
static const __u8 gateway_mac[ETH_ALEN] = { 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff };

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return *(__u16 *)a == *(__u16 *)b && *(__u16 *)(a + 2) == *(__u16 *)(b + 2) &&
	       *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

static __always_inline bool in_net(__be32 address, __be32 base, __be32 mask)
{
	return (address & mask) == base;
}

#define NET(a, b, c, d) bpf_htonl((a) << 24 | (b) << 16 | (c) << 8 | (d))

static __always_inline bool is_multicast(__be32 address)
{
	return in_net(address, NET(224U, 0, 0, 0), NET(240U, 0, 0, 0)) || address == 0xffffffff;
}

/* "This network", loopback and the reserved class E: never on a wire (RFC 1812 5.3.7). */
static __always_inline bool is_martian(__be32 address)
{
	return in_net(address, 0, NET(255U, 0, 0, 0)) ||
	       in_net(address, NET(127U, 0, 0, 0), NET(255U, 0, 0, 0)) ||
	       in_net(address, NET(240U, 0, 0, 0), NET(240U, 0, 0, 0));
}

static __always_inline bool is_link_local(__be32 address)
{
	return in_net(address, NET(169U, 254, 0, 0), NET(255U, 255, 0, 0));
}

static __always_inline bool in_pool(const struct vfr_config *config, __be32 address)
{
	return in_net(address, config->pool_base, config->pool_mask);
}

/* Whom the guest takes for the router. */
static __always_inline __be32 gateway_seen(const struct vfr_config *config, const struct vfr_domain *domain)
{
	return domain->guest_gateway ? domain->guest_gateway : config->gateway;
}

static __always_inline bool is_vlan(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD) ||
	       ethertype == bpf_htons(0x9100);
}

/* Which kind of option a header has; none is passed on (RFC 7126 says why for nearly all). */
__noinline enum vfr_verdict guard_options(struct __sk_buff *skb, __u32 ihl)
{
	__u8 options[40] = {};
	__u32 length = ihl * 4 - sizeof(struct iphdr), at = 0;

	if (length > sizeof(options) || length < 4 || bpf_skb_load_bytes(skb, L4_OFFSET, options, length))
		return VFR_DROP_IP_HEADER;
	for (__u32 i = 0; i < sizeof(options); i++) {
		__u8 type = at < sizeof(options) ? options[at] : IPOPT_END;

		if (type == IPOPT_LSRR || type == IPOPT_SSRR)
			return VFR_DROP_SOURCE_ROUTE;
		if (type == IPOPT_END)
			break;
		if (type != IPOPT_NOOP && at + 1 < sizeof(options) && options[at + 1] > 1)
			at += options[at + 1] - 1;
		at++;
	}
	return VFR_DROP_IP_OPTIONS;
}

/* The header must sum to ones, end inside the frame, and have no options (RFC 1812 5.2.2). */
static __always_inline enum vfr_verdict guard_ip_header(struct vfr_pkt *p)
{
	struct iphdr *ip = header(p->skb, L3_OFFSET, sizeof(*ip));
	__u32 *word = (__u32 *)ip;
	__u64 wide = 0;

	if (!ip)
		return VFR_DROP_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return VFR_DROP_IP_HEADER;
	if (p->l3_length < ip->ihl * 4 || L3_OFFSET + p->l3_length > p->skb->len)
		return VFR_DROP_IP_HEADER;
	if (ip->ihl > 5)
		return guard_options(p->skb, ip->ihl);
#pragma unroll
	for (int i = 0; i < 5; i++)
		wide += word[i];
	return fold(wide) == 0xffff ? VFR_CONTINUE : VFR_DROP_IP_HEADER;
}

/* A fragment must be one that a datagram can be put together from: all but the last a multiple of
 * eight bytes, none beyond 64 KiB, and none that lies over the L4 header (RFC 3128). */
static __always_inline enum vfr_verdict guard_fragment(const struct vfr_pkt *p)
{
	__u32 begin = (bpf_ntohs(p->fragment) & 0x1fff) * 8;
	__u32 length = p->l3_length - sizeof(struct iphdr);
	bool more = p->fragment & bpf_htons(0x2000);

	if (!length || (more && length % 8) || begin + length > 65535 - sizeof(struct iphdr))
		return VFR_DROP_FRAGMENT;
	return p->later && begin < sizeof(struct tcphdr) && p->l4_proto == IPPROTO_TCP ? VFR_DROP_FRAGMENT
										       : VFR_CONTINUE;
}

/* What any IP packet is held to that is ours to forward, wherever it came from. */
static __always_inline enum vfr_verdict guard_l4(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = p->fragment ? guard_fragment(p) : VFR_CONTINUE;

	if (verdict != VFR_CONTINUE)
		return verdict;
	if (!p->later)
		verdict = parse_l4(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (p->error && p->fragment)
		return VFR_DROP_FRAGMENT;
	return check_offload(p);
}

static __always_inline enum vfr_verdict guard_arp(struct vfr_pkt *p, bool group_or_gateway)
{
	struct vfr_arp *arp = header(p->skb, L3_OFFSET, sizeof(*arp));

	if (!arp)
		return VFR_DROP_TRUNCATED;
	if (arp->hardware != bpf_htons(ARPHRD_ETHER) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != ETH_ALEN || arp->protocol_len != sizeof(__be32) ||
	    (arp->operation != bpf_htons(ARPOP_REQUEST) && arp->operation != bpf_htons(ARPOP_REPLY)))
		return VFR_DROP_ARP_HEADER;
	if (!same_mac(arp->sender_mac, p->from->guest_mac))
		return VFR_DROP_ARP_SENDER;
	if (arp->sender_ip != p->from->guest_address && arp->sender_ip)
		return VFR_DROP_ARP_SENDER;
	return group_or_gateway ? VFR_CONTINUE : VFR_DROP_DST_MAC;
}

static __always_inline enum vfr_verdict guard_target(const struct vfr_pkt *p)
{
	if (is_multicast(p->dst))
		return VFR_DROP_MULTICAST;
	return is_martian(p->dst) || p->dst == p->src ? VFR_DROP_MARTIAN : VFR_CONTINUE;
}

/* A guest's DHCP: to everybody, or to whom it takes for the router. */
__noinline int is_dhcp(struct __sk_buff *skb, __u32 slot)
{
	struct vfr_domain *domain = domain_in(slot);
	struct vfr_config *config = config_now();
	struct iphdr *ip = header(skb, L3_OFFSET, sizeof(*ip) + sizeof(struct udphdr));
	struct udphdr *udp = (void *)(ip + 1);

	if (!domain || !domain->lease_s || !config || !ip || ip->protocol != IPPROTO_UDP)
		return false;
	if (ip->frag_off & bpf_htons(0x1fff) || udp->dest != bpf_htons(DHCP_SERVER))
		return false;
	return ip->daddr == 0xffffffff || ip->daddr == gateway_seen(config, domain);
}

/* Whether it is worth a closer look, for one branch: each that a verdict hangs on doubles what the verifier has to walk
 * through behind it. A product is 0 where a factor is. */
static __always_inline bool may_be_dhcp(const struct vfr_pkt *p)
{
	__u64 elsewhere = (__u64)(p->dst ^ 0xffffffff) * (p->dst ^ p->config->gateway) *
			  (p->dst ^ p->from->guest_gateway);

	return !(elsewhere | (p->l4_proto ^ IPPROTO_UDP));
}

/* Its source is looked at where it is answered: a guest that has no address yet has none to be held to. */
static __always_inline enum vfr_verdict guard_dhcp(struct vfr_pkt *p, bool group_or_gateway)
{
	enum vfr_verdict verdict;

	p->dhcp = true;
	if (!group_or_gateway)
		return VFR_DROP_DST_MAC;
	if (p->fragment)
		return VFR_DROP_DHCP_HEADER;
	if (p->skb->gso_size)
		return VFR_DROP_OFFLOAD;
	verdict = parse_udp(p, p->l3_length - sizeof(struct iphdr));
	return verdict == VFR_CONTINUE ? check_offload(p) : verdict;
}

static __always_inline enum vfr_verdict guard_ip(struct vfr_pkt *p, bool to_group, bool to_gateway)
{
	enum vfr_verdict verdict = parse_ip(p);

	if (verdict == VFR_CONTINUE)
		verdict = guard_ip_header(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (may_be_dhcp(p) && is_dhcp(p->skb, p->from_slot))
		return guard_dhcp(p, to_group || to_gateway);
	if (p->src != p->from->guest_address)
		return VFR_DROP_SRC_IP;
	verdict = guard_target(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (to_group)
		return VFR_DROP_GROUP_MAC;
	return to_gateway ? guard_l4(p) : VFR_DROP_DST_MAC;
}

/* Raw Ethernet: a length field is no EtherType, and nothing of it is to be completed or cut later. */
static __always_inline enum vfr_verdict guard_ether(struct vfr_pkt *p, bool to_group)
{
	if (p->l3_proto == bpf_htons(ETH_P_IPV6))
		return VFR_DROP_IPV6;
	if (to_group || bpf_ntohs(p->l3_proto) < ETHERTYPE_LEAST)
		return VFR_DROP_ETHERTYPE;
	p->later = true; /* so far as offloads go: it has no L4 header */
	return check_offload(p);
}

/* What a VIF's domain may send. Leaves the L4 fields parsed for IP. */
static __always_inline enum vfr_verdict guard(struct vfr_pkt *p)
{
	struct ethhdr *eth = header(p->skb, 0, sizeof(*eth));
	bool to_group, to_gateway;

	if (!eth)
		return VFR_DROP_TRUNCATED;
	if (p->skb->vlan_present || is_vlan(p->l3_proto))
		return VFR_DROP_VLAN;
	if (!same_mac(eth->h_source, p->from->guest_mac))
		return VFR_DROP_SRC_MAC;
	to_group = eth->h_dest[0] & 1;
	to_gateway = same_mac(eth->h_dest, gateway_mac);
	if (p->l3_proto == bpf_htons(ETH_P_IP))
		return guard_ip(p, to_group, to_gateway);
	if (p->l3_proto == bpf_htons(ETH_P_ARP))
		return guard_arp(p, to_group || to_gateway);
	return guard_ether(p, to_group);
}

#endif
