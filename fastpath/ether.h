/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ether: raw Ethernet between two domains, as storage protocols have it (HyperSCSI, AoE).
 *
 * A frame goes to the domain whose MAC it is for, as it stands, if a rule lets its EtherType go there. There is no
 * conversation and no state: the other way takes a rule of its own. Never to a group, and never to the LAN. A clone is
 * known to others by its own MAC, and hears by its guest's.
 */
#ifndef VFR_ETHER_H
#define VFR_ETHER_H

#include "deliver.h"
#include "policy.h"
#include "rate.h"

static __always_inline bool is_ether(const struct vfr_pkt *p)
{
	return p->l3_proto != bpf_htons(ETH_P_IP) && p->l3_proto != bpf_htons(ETH_P_ARP);
}

/* Whom it is for. */
static __always_inline bool find_mac(struct vfr_pkt *p)
{
	struct ethhdr *eth = header(p->skb, 0, sizeof(*eth));
	struct vfr_mac_key key = {};
	__u32 *slot;

	if (!eth)
		return false;
	__builtin_memcpy(key.mac, eth->h_dest, ETH_ALEN);
	slot = bpf_map_lookup_elem(&macs, &key);
	if (!slot)
		return false;
	p->to_node = *slot;
	p->to = domain_in(*slot);
	return p->to && p->to_node != p->from_slot;
}

/* As it stands, but for the MACs of clones. */
static __always_inline enum vfr_verdict hand_over_ether(struct vfr_pkt *p)
{
	struct ethhdr *eth = header(p->skb, 0, sizeof(*eth));

	if (!eth)
		return VFR_DROP_KERNEL;
	if (p->from->is_clone)
		__builtin_memcpy(eth->h_source, p->from->mac, ETH_ALEN);
	if (p->to->is_clone)
		__builtin_memcpy(eth->h_dest, p->to->guest_mac, ETH_ALEN);
	return redirect(p);
}

static __always_inline enum vfr_verdict ether(struct vfr_pkt *p)
{
	struct vfr_rule *rule;
	enum vfr_verdict verdict;

	if (!find_mac(p))
		return VFR_DROP_ETHERTYPE;
	p->opener = p->from_slot;
	p->target = p->to_node;
	p->service = p->l3_proto;
	note_asked(p, 0);
	p->rule = ask_policy(p->opener, p->target, 0, ports_rest(1, 0, p->service));
	rule = rule_number(p->rule);
	verdict = verdict_of(rule);
	count_rule(rule, p->skb->len);
	if (verdict != VFR_CONTINUE)
		return VFR_DROP_ETHERTYPE;
	if (p->skb->len > p->to->mtu + sizeof(struct ethhdr))
		return VFR_DROP_TOO_BIG;
	verdict = keep_rates(p);
	return verdict == VFR_CONTINUE ? hand_over_ether(p) : verdict;
}

#endif
