/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * answer: what guests ask the network itself. Who they are, by DHCP (dhcp.h). ARP for the gateway, and for the
 * peers a domain has business with (systems that take 169.254/16 for on-link ask for the peer, not for the
 * gateway).
 * Silent for everything else: an answer to a duplicate address probe, or about a domain's own
 * address, would tell the guest that its address is taken.
 */
#ifndef VFR_ANSWER_H
#define VFR_ANSWER_H

#include "dhcp.h"
#include "policy.h"
#include "view.h"

static __always_inline bool is_known_peer(struct vfr_pkt *p, __be32 address)
{
	__u32 *slot = bpf_map_lookup_elem(&addresses, &address);

	/* Domain 0 has been asked for by the address that the guest knows, and the guest itself is no peer. */
	return slot && *slot && *slot != p->from_slot && may_talk(p->from_slot, *slot);
}

static __always_inline enum vfr_verdict answer_arp(struct vfr_pkt *p)
{
	struct ethhdr *eth = header(p->skb, 0, sizeof(*eth) + sizeof(struct vfr_arp));
	struct vfr_arp *arp = (void *)(eth + 1);
	__be32 asked;

	if (!eth)
		return VFR_DROP_TRUNCATED;
	asked = arp->target_ip;
	if (arp->operation == bpf_htons(ARPOP_REPLY))
		return VFR_DROP_ARP_REPLY;
	if (!arp->sender_ip)
		return VFR_DROP_ARP_PROBE;
	if (asked == p->from->guest_address)
		return VFR_DROP_ARP_OWN;
	if (asked != gateway_seen(p->config, p->from) && !is_known_peer(p, asked))
		return VFR_DROP_ARP_UNANSWERED;

	__builtin_memcpy(eth->h_dest, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, gateway_mac, ETH_ALEN);
	arp->operation = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, gateway_mac, ETH_ALEN);
	arp->sender_ip = asked;
	p->action = bpf_redirect(p->skb->ifindex, 0);
	return VFR_ANSWERED;
}

static __always_inline enum vfr_verdict answer(struct vfr_pkt *p)
{
	if (p->dhcp)
		return answer_dhcp(p);
	return p->l3_proto == bpf_htons(ETH_P_ARP) ? answer_arp(p) : VFR_CONTINUE;
}

#endif
