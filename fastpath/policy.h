/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * policy: may this conversation be? Asked for the first packet of a conversation, and again for
 * the next packet of each living one after the rules changed: revoked means cut.
 *
 * Two steps, whatever the number of rules. The pair of nodes gives a port set: the row of the most
 * specific pair holds the merged meaning of all rules about it, so the first row found decides.
 * The port set is a set of prefixes in @port_sets.
 */
#ifndef VFR_POLICY_H
#define VFR_POLICY_H

#include "parse.h"

#define NO_ROW 0xffffffffU

static __always_inline __u32 pair_row(void *pairs, __u16 opener, __u16 target)
{
	struct vfr_pair_key key = { .opener = opener, .target = target };
	__u32 *set = bpf_map_lookup_elem(pairs, &key);

	return set ? *set : NO_ROW;
}

__noinline __u32 port_set(__u16 opener, __u16 target)
{
	__u32 zero = 0, set;
	void *pairs = bpf_map_lookup_elem(&policy, &zero);

	if (!pairs)
		return VFR_SET_NOTHING;
	set = pair_row(pairs, opener, target);
	if (set == NO_ROW)
		set = pair_row(pairs, opener, VFR_NODE_ANY);
	if (set == NO_ROW)
		set = pair_row(pairs, VFR_NODE_ANY, target);
	if (set == NO_ROW)
		set = pair_row(pairs, VFR_NODE_ANY, VFR_NODE_ANY);
	return set == NO_ROW ? VFR_SET_NOTHING : set;
}

__noinline enum vfr_verdict ask_policy(__u16 opener, __u16 target, __u8 protocol, __be16 port)
{
	__u32 set = port_set(opener, target), *rule;
	struct vfr_ports_key key = {
		.prefixlen = 64,
		.set = bpf_htonl(set),
		.protocol = protocol,
		.port = port,
	};

	if (set == VFR_SET_NOTHING || set == VFR_SET_EVERYTHING)
		return set == VFR_SET_EVERYTHING ? VFR_CONTINUE : VFR_DROP_POLICY;
	rule = bpf_map_lookup_elem(&port_sets, &key);
	if (!rule)
		return VFR_DROP_POLICY;
	return *rule == VFR_RULE_ALLOW ? VFR_CONTINUE : VFR_DROP_REJECTED;
}

/* Whether either may open anything to the other: whoever may be answered must be found by ARP. */
static __always_inline bool may_talk(__u16 one, __u16 other)
{
	return port_set(one, other) != VFR_SET_NOTHING || port_set(other, one) != VFR_SET_NOTHING;
}

static __always_inline enum vfr_verdict apply_policy(struct vfr_pkt *p)
{
	__u32 now = p->config->policy;
	enum vfr_verdict verdict;

	if (p->session && p->session->policy == now)
		return VFR_CONTINUE;
	verdict = ask_policy(p->opener, p->target, p->l4_proto, p->service);
	if (!p->session)
		return verdict;
	if (verdict == VFR_CONTINUE)
		p->session->policy = now;
	else
		p->session->expires_ns = 0;
	return verdict;
}

#endif
