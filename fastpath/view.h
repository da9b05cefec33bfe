/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * view: a clone's guest believes to have another address, MAC and gateway than the router knows it by.
 *
 * Snapshots of one VM all do, and all alike. So guard holds a clone's frames to what its guest believes; behind it
 * the frame is made to carry the domain's own address (@enter_view), and the last thing before it is handed
 * over is that a clone's frame carries what its guest knows again (@leave_view). All between, sessions,
 * rules, fragments, the sorter, errors, knows own addresses only. What an ICMP error quotes is translated with it.
 *
 * NOTE: a checksum may cover addresses, and only of TCP, UDP and ICMP is it known where it stands. So clones have no
 * other IP protocols (VFR_DROP_PROTOCOL). Of raw Ethernet the header's MACs are translated, and nothing else.
 */
#ifndef VFR_VIEW_H
#define VFR_VIEW_H

#include "related.h"

/* Puts another address in the IP header's place `at`. `protocol` is the one whose checksum covers it, or 0. */
__noinline int readdress(struct __sk_buff *skb, __u32 at, __be32 old, __be32 new, __u32 protocol)
{
	__u64 flags = BPF_F_PSEUDO_HDR | sizeof(new) | (protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);

	if (protocol && bpf_l4_csum_replace(skb, l4_checksum_offset(protocol), old, new, flags))
		return false;
	return !bpf_l3_csum_replace(skb, L3_OFFSET + offsetof(struct iphdr, check), old, new, sizeof(new)) &&
	       !bpf_skb_store_bytes(skb, L3_OFFSET + at, &new, sizeof(new), 0);
}

/* The protocol whose checksum covers the packet's addresses, 0 if none does. */
static __always_inline __u32 covering(const struct vfr_pkt *p)
{
	bool covers = p->l4_proto == IPPROTO_TCP || p->l4_proto == IPPROTO_UDP;

	return covers && !p->later && !p->error ? p->l4_proto : 0;
}

/* Replaces the target (outward) or the source of what an error quotes; its port stays. */
__noinline enum vfr_verdict readdress_quote(struct __sk_buff *skb, struct requote *r)
{
	if (!r || bpf_skb_load_bytes(skb, quoted_port_at(r), &r->old_port, sizeof(r->old_port)))
		return VFR_DROP_KERNEL;
	r->new_port = r->old_port;
	return requote(skb, r);
}

/* A quote's one end and, if that is the router, its other. */
static __always_inline enum vfr_verdict readdress_ends(struct vfr_pkt *p, struct requote *r, __be32 other,
						       __be32 gateway, __be32 new_gateway)
{
	enum vfr_verdict verdict = readdress_quote(p->skb, r);

	if (verdict != VFR_CONTINUE || other != gateway || gateway == new_gateway)
		return verdict;
	r->old = gateway;
	r->new = new_gateway;
	r->changed = 0;
	r->outward = !r->outward;
	return readdress_quote(p->skb, r);
}

/* What a clone's error quotes was sent to its guest, or it is none of ours. */
static __always_inline enum vfr_verdict enter_quote(struct vfr_pkt *p)
{
	struct requote r = { .end = L3_OFFSET + p->l3_length, .outward = true };
	struct quoted q = {};

	if (!parse_quoted(p->skb, p->l3_length, &q) || q.peer != p->from->guest_address)
		return VFR_DROP_ICMP_ERROR;
	r.l4 = q.l4;
	r.protocol = q.protocol;
	r.old = p->from->guest_address;
	r.new = p->from->address;
	return readdress_ends(p, &r, q.sender, gateway_seen(p->config, p->from), p->config->gateway);
}

/* A clone's packet, as an ordinary domain would have sent it. By its own address as the router knows it, or by
 * the router's where the guest has another, it speaks to nobody: an answer would come from elsewhere. */
static __always_inline enum vfr_verdict enter_clone(struct vfr_pkt *p)
{
	__be32 gateway = gateway_seen(p->config, p->from);
	enum vfr_verdict verdict = VFR_CONTINUE;

	if (!has_ports(p->l4_proto))
		return VFR_DROP_PROTOCOL;
	if (p->dst == p->from->address)
		return VFR_DROP_MARTIAN;
	if (p->dst == p->config->gateway && p->dst != gateway)
		return VFR_DROP_NO_DOMAIN;
	if (p->error)
		verdict = enter_quote(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (!readdress(p->skb, offsetof(struct iphdr, saddr), p->src, p->from->address, covering(p)))
		return VFR_DROP_KERNEL;
	p->src = p->from->address;
	if (p->dst != gateway || gateway == p->config->gateway)
		return VFR_CONTINUE;
	if (!readdress(p->skb, offsetof(struct iphdr, daddr), gateway, p->config->gateway, covering(p)))
		return VFR_DROP_KERNEL;
	p->dst = p->config->gateway;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict enter_view(struct vfr_pkt *p)
{
	return p->from->is_clone ? enter_clone(p) : VFR_CONTINUE;
}

/* Whether the receiver's guest can be shown the packet at all, asked before any state is made: not if
 * it comes from whom the guest takes for itself, or for its gateway. */
static __always_inline enum vfr_verdict can_see(const struct vfr_pkt *p)
{
	__be32 gateway = gateway_seen(p->config, p->to);

	if (!has_ports(p->l4_proto))
		return VFR_DROP_PROTOCOL;
	return p->src == p->to->guest_address || (p->src == gateway && gateway != p->config->gateway)
		       ? VFR_DROP_MARTIAN : VFR_CONTINUE;
}

/* What is quoted was sent by the guest. */
static __always_inline enum vfr_verdict leave_quote(struct vfr_pkt *p)
{
	struct requote r = { .end = L3_OFFSET + p->l3_length, .l4 = p->quoted_l4, .protocol = p->l4_proto };
	__be32 other;

	r.old = p->to->address;
	r.new = p->to->guest_address;
	if (bpf_skb_load_bytes(p->skb, QUOTED_IP + offsetof(struct iphdr, daddr), &other, sizeof(other)))
		return VFR_DROP_KERNEL;
	return readdress_ends(p, &r, other, p->config->gateway, gateway_seen(p->config, p->to));
}

static __always_inline enum vfr_verdict leave_clone(struct vfr_pkt *p)
{
	struct iphdr *ip = header(p->skb, L3_OFFSET, sizeof(*ip));
	__be32 gateway = gateway_seen(p->config, p->to), src;

	if (!ip)
		return VFR_DROP_KERNEL;
	src = ip->saddr; /* of an error, p->src is somebody else */
	if (!readdress(p->skb, offsetof(struct iphdr, daddr), p->to->address, p->to->guest_address, covering(p)))
		return VFR_DROP_KERNEL;
	if (src == p->config->gateway && src != gateway &&
	    !readdress(p->skb, offsetof(struct iphdr, saddr), src, gateway, covering(p)))
		return VFR_DROP_KERNEL;
	return p->error ? leave_quote(p) : VFR_CONTINUE;
}

/* What an ordinary domain would get, as the receiver's guest is to see it. */
static __always_inline enum vfr_verdict leave_view(struct vfr_pkt *p)
{
	return p->to->is_clone ? leave_clone(p) : VFR_CONTINUE;
}

/* What a clone sent, as it sent it: to be quoted back to it. */
static __always_inline bool restore_view(struct vfr_pkt *p)
{
	__be32 gateway = gateway_seen(p->config, p->from);

	if (!p->from->is_clone)
		return true;
	if (!readdress(p->skb, offsetof(struct iphdr, saddr), p->from->address, p->from->guest_address, covering(p)))
		return false;
	return p->dst != p->config->gateway || gateway == p->config->gateway ||
	       readdress(p->skb, offsetof(struct iphdr, daddr), p->dst, gateway, covering(p));
}

#endif
