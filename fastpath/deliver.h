/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * deliver: one hop further, and out. A guest is reached without the host's stack; the LAN through
 * the kernel's own neighbour table, so that MACs there are never stale.
 */
#ifndef VFR_DELIVER_H
#define VFR_DELIVER_H

#include "fragment.h"
#include "view.h"

static __always_inline __u32 next_mtu(const struct vfr_pkt *p)
{
	return p->to ? p->to->mtu : p->config->uplink_mtu;
}

/* Whether it may go one hop further, and the next interface takes it, asked before any state is made.
 * A GSO frame will leave in segments, so its own length says nothing. What is too long is cut by the
 * sorter, if its sender allows that. */
static __always_inline enum vfr_verdict fits(struct vfr_pkt *p)
{
	__u32 gso = p->skb->gso_size;
	__u32 length = gso ? sizeof(struct iphdr) + p->l4_length + gso : p->l3_length;
	enum vfr_verdict seen = p->to && p->to->is_clone ? can_see(p) : VFR_CONTINUE;

	if (seen != VFR_CONTINUE)
		return seen;
	if (p->ttl <= 1)
		return VFR_DROP_TTL;
	if (length <= next_mtu(p))
		return VFR_CONTINUE;
	return p->dont_fragment || p->sorted ? VFR_DROP_TOO_BIG : to_sorter(p);
}

static __always_inline enum vfr_verdict decrement_ttl(struct vfr_pkt *p)
{
	struct iphdr *ip = header(p->skb, L3_OFFSET, sizeof(*ip));
	__u32 sum;

	if (!ip)
		return VFR_DROP_KERNEL;
	/* Down by 0x0100 in the sum is up by 0x0100 in its complement (RFC 1141). The kernel does
	 * not offload the IP header's checksum, so no helper need know. */
	sum = (__u32)ip->check + bpf_htons(0x0100);
	ip->check = (__sum16)(sum + (sum >= 0xffff));
	ip->ttl--;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict deliver_lan(struct vfr_pkt *p)
{
	struct iphdr *ip = header(p->skb, L3_OFFSET, sizeof(*ip));

	/* The last gate: whatever went wrong before, no address of the router's own leaves it. */
	if (!ip || ip->saddr != p->config->outside_address || is_link_local(ip->daddr))
		return VFR_DROP_KERNEL;
	p->action = bpf_redirect_neigh(p->config->uplink_ifindex, NULL, 0, 0);
	return VFR_TO_LAN;
}

/* To the LAN address from inside: in again by the uplink's hook, as the LAN would see it. The hop is
 * counted there. */
static __always_inline enum vfr_verdict deliver_hairpin(struct vfr_pkt *p)
{
	p->skb->mark = VFR_MARK_HAIRPIN;
	p->action = bpf_redirect(p->config->uplink_ifindex, BPF_F_INGRESS);
	return VFR_HAIRPIN;
}

/* Into a domain, the way its interface has it. */
static __always_inline enum vfr_verdict redirect(struct vfr_pkt *p)
{
	if (p->skb->pkt_type != PACKET_HOST && bpf_skb_change_type(p->skb, PACKET_HOST))
		return VFR_DROP_KERNEL;
	switch (p->to->deliver) {
	case VFR_DELIVER_PEER:
		p->action = bpf_redirect_peer(p->to->ifindex, 0);
		return VFR_TO_DOMAIN;
	case VFR_DELIVER_DEVICE:
		p->action = bpf_redirect(p->to->ifindex, 0);
		return VFR_TO_DOMAIN;
	case VFR_DELIVER_DOM0:
		p->action = bpf_redirect(p->to->ifindex, BPF_F_INGRESS);
		return VFR_TO_DOM0;
	default:
		return VFR_DROP_NOT_READY;
	}
}

/* Into a domain, from the router as its guest sees it. */
static __always_inline enum vfr_verdict hand_over(struct vfr_pkt *p)
{
	struct ethhdr *eth = header(p->skb, 0, sizeof(*eth));

	if (!eth)
		return VFR_DROP_KERNEL;
	__builtin_memcpy(eth->h_dest, p->to->guest_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, gateway_mac, ETH_ALEN);
	return redirect(p);
}

static __always_inline enum vfr_verdict deliver(struct vfr_pkt *p)
{
	enum vfr_verdict verdict;

	if (p->hairpin && !p->to)
		return deliver_hairpin(p);
	verdict = decrement_ttl(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (!p->to)
		return deliver_lan(p);
	verdict = leave_view(p);
	return verdict == VFR_CONTINUE ? hand_over(p) : verdict;
}

#endif
