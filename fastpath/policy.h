/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * policy: may this conversation be? Asked for the first packet of a conversation, and again for
 * the next packet of each living one after the rules changed: revoked means cut.
 *
 * The same few steps, whatever the number of rules. Each end has three levels:
 *
 *     a domain      its slot        its groups, as one node    any
 *     the LAN       its addresses   local or internet          any
 *
 * and for a pair of levels there may be a row: a rule, or a set of prefixes of ports in @port_sets, where the
 * longest has the rule that decides for this row. Of nine rows at the most, the rule of the highest rank decides.
 * The header says on which pairs of levels there are rows at all, so that nobody asks in vain. What a row says is
 * merged by the control plane; that and this have the same meaning (vfr/policy/rules.py), which tests prove.
 */
#ifndef VFR_POLICY_H
#define VFR_POLICY_H

#include "parse.h"

#define LEVELS 3
#define FROM_GROUPS 0x38 /* in the header's mask: rows with an opener, */
#define TO_GROUPS 0x92   /* or with a target, on the middle level */
#define PORTS_PREFIX_MAX 64
#define REMOTE_PREFIX_MAX 64

/* One question, and what was found so far. Nodes are three to a word, the most special level lowest. */
struct asking {
	void *pairs;
	__u64 openers, targets;
	__u32 levels;
	__be32 ports_rest;           /* ether, protocol and port, as they stand in a key */
	__u32 rule, rank;
	__u32 flags;                 /* of all rows together */
	bool flags_only;
};

static __always_inline __u64 three_nodes(__u16 own, __u16 middle)
{
	return own | (__u64)middle << 16 | (__u64)VFR_NODE_ANY << 32;
}

static __always_inline struct vfr_pair *pair_row(void *pairs, __u16 opener, __u16 target)
{
	struct vfr_pair_key key = { .opener = opener, .target = target };

	return bpf_map_lookup_elem(pairs, &key);
}

static __always_inline __u64 nodes_of_domain(void *pairs, __u32 levels, __u16 slot, __u32 middle_levels)
{
	struct vfr_pair *groups = levels & middle_levels ? pair_row(pairs, slot, VFR_NODE_HEADER) : NULL;

	return three_nodes(slot, groups ? groups->number : VFR_NODE_NONE);
}

static __always_inline __u64 nodes_of_remote(__u32 policy, __be32 address)
{
	struct vfr_remote_key key = {
		.prefixlen = REMOTE_PREFIX_MAX,
		.policy = bpf_htonl(policy),
		.address = address,
	};
	__u32 *nodes = bpf_map_lookup_elem(&remotes, &key);

	return nodes ? three_nodes(*nodes & 0xffff, *nodes >> 16) : three_nodes(VFR_NODE_NONE, VFR_NODE_NONE);
}

static __always_inline __u32 rule_in_set(__u32 set, __be32 ports_rest)
{
	union { struct vfr_ports_key key; __u32 word[3]; } u = {
		.word = { PORTS_PREFIX_MAX, bpf_htonl(set), ports_rest },
	};
	__u32 *number = bpf_map_lookup_elem(&port_sets, &u.key);

	return number ? *number : 0;
}

static __always_inline void take_rule(struct asking *a, __u32 number)
{
	struct vfr_rule *rule = number ? bpf_map_lookup_elem(&rules, &number) : NULL;

	if (!rule || rule->rank < a->rank || (rule->rank == a->rank && a->rule && a->rule <= number))
		return;
	a->rank = rule->rank;
	a->rule = number;
}

static long ask_level(__u32 i, struct asking *a)
{
	__u16 opener = a->openers >> (i / LEVELS % LEVELS * 16), target = a->targets >> (i % LEVELS * 16);
	struct vfr_pair *row;

	if (!(a->levels & 1U << (i & 15)))
		return 0;
	row = pair_row(a->pairs, opener, target);
	if (!row)
		return 0;
	a->flags |= row->flags;
	if (a->flags_only)
		return 0;
	if (!(row->flags & VFR_PAIR_IS_RULE))
		take_rule(a, rule_in_set(row->number, a->ports_rest));
	else if (!(a->ports_rest & bpf_htonl(0xff000000)))
		take_rule(a, row->number);
	return 0;
}

/* Makes the question ready. False if there is no policy. `remote` is who is meant by VFR_NODE_LAN. */
static __always_inline bool prepare(struct asking *a, __u16 opener, __u16 target, __be32 remote)
{
	__u32 zero = 0;
	struct vfr_pair *header;

	a->pairs = bpf_map_lookup_elem(&policy, &zero);
	header = a->pairs ? pair_row(a->pairs, VFR_NODE_HEADER, VFR_NODE_HEADER) : NULL;
	if (!header)
		return false;
	a->levels = header->flags;
	a->openers = opener == VFR_NODE_LAN ? nodes_of_remote(header->number, remote)
					    : nodes_of_domain(a->pairs, a->levels, opener, FROM_GROUPS);
	a->targets = target == VFR_NODE_LAN ? nodes_of_remote(header->number, remote)
					    : nodes_of_domain(a->pairs, a->levels, target, TO_GROUPS);
	return true;
}

/* The number of the rule that decides, 0 if none does: default deny. `ports_rest` is ether, protocol and port. */
__noinline __u32 ask_policy(__u16 opener, __u16 target, __be32 remote, __be32 ports_rest)
{
	struct asking a = { .ports_rest = ports_rest };

	if (!prepare(&a, opener, target, remote))
		return 0;
	bpf_loop(LEVELS * LEVELS, ask_level, &a, 0);
	return a.rule;
}

/* Whether a domain may open anything to another, or is told why not. */
__noinline int may_open(__u16 opener, __u16 target)
{
	struct asking a = { .flags_only = true };

	if (!prepare(&a, opener, target, 0))
		return false;
	bpf_loop(LEVELS * LEVELS, ask_level, &a, 0);
	return a.flags & VFR_PAIR_OPENS && !(a.flags & VFR_PAIR_SHUTS);
}

/* Whether either may open anything to the other: whoever may be answered must be found by ARP. */
static __always_inline bool may_talk(__u16 one, __u16 other)
{
	return may_open(one, other) || may_open(other, one);
}

static __always_inline struct vfr_rule *rule_number(__u32 number)
{
	return number ? bpf_map_lookup_elem(&rules, &number) : NULL;
}

static __always_inline enum vfr_verdict verdict_of(const struct vfr_rule *rule)
{
	if (!rule || rule->action == VFR_ACTION_DENY)
		return VFR_DROP_POLICY;
	return rule->action == VFR_ACTION_ALLOW ? VFR_CONTINUE : VFR_DROP_REJECTED;
}

static __always_inline __be32 ports_rest(__u8 ether, __u8 protocol, __be16 port)
{
	union { struct { __u8 ether, protocol; __be16 port; } part; __be32 word; } u = {
		.part = { ether, protocol, port },
	};

	return u.word;
}

static __always_inline void count_rule(struct vfr_rule *rule, __u32 bytes)
{
	if (!rule)
		return;
	__sync_fetch_and_add(&rule->packets, 1);
	__sync_fetch_and_add(&rule->bytes, bytes);
}

/* For who asks what becomes of a packet: what the policy is asked about it. */
static __always_inline void note_asked(const struct vfr_pkt *p, __be32 remote)
{
	struct vfr_trace *asked = tracing ? trace_row(VFR_TRACE_ASKED) : NULL;

	if (!asked)
		return;
	asked->remote = remote;
	asked->opener = p->opener;
	asked->asked = p->target;
	asked->service = p->service;
	asked->was_asked = true;
}

static __always_inline enum vfr_verdict apply_policy(struct vfr_pkt *p)
{
	struct vfr_rule *rule;
	enum vfr_verdict verdict;

	/* Read before the question is asked: what the old rules let through must not count as asked of the new. */
	p->policy = p->config->policy;
	barrier();
	if (p->session && p->session->policy == p->policy)
		return VFR_CONTINUE;
	note_asked(p, p->key.remote);
	p->rule = ask_policy(p->opener, p->target, p->key.remote, ports_rest(0, p->l4_proto, p->service));
	rule = rule_number(p->rule);
	verdict = verdict_of(rule);
	if (!p->session || verdict != VFR_CONTINUE)
		count_rule(rule, p->skb->len);
	if (!p->session)
		return verdict;
	if (verdict == VFR_CONTINUE)
		p->session->policy = p->policy;
	else
		p->session->expires_ns = 0;
	return verdict;
}

#endif
