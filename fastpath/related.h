/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * related: ICMP errors about our conversations, in both directions.
 *
 * An error quotes the packet that it is about. It is looked up as an answer to that packet would be:
 * ports turned round, protocol the quoted one. Only a living conversation lets it pass, with the same
 * addresses and port translated in the quote as outside of it, and it never changes any state
 * (RFC 5508 REQ-3 to REQ-6). What is quoted may have IP options, and may be cut off behind eight
 * bytes of its L4 header.
 */
#ifndef VFR_RELATED_H
#define VFR_RELATED_H

#include "session.h"

#define QUOTED_IP (L4_OFFSET + sizeof(struct vfr_icmp))
#define QUOTED_L4_MIN 8

/* First eight bytes of any L4 header, enough for ports or an echo identifier. */
struct l4_start {
	__be16 word[4];
};

static __always_inline bool sums_to_ones(struct __sk_buff *skb, __u32 at, __u32 length)
{
	__s64 sum = sum_bytes(skb, at, length, 0);

	return sum >= 0 && fold(sum) == 0xffff;
}

/* What an error quotes, as an answer to it would have it: `peer` is whom it would come from. */
struct quoted {
	__be32 sender, peer;
	__be16 sport, dport;
	__u8 protocol;
	__u8 icmp_type;
	__u8 l4;                     /* where the quoted L4 header is in the frame */
	__u8 zero;
};

static __always_inline bool turn_quoted(struct quoted *q, const struct l4_start *l4)
{
	__u8 type = *(const __u8 *)l4;

	q->sport = l4->word[1];
	q->dport = l4->word[0];
	if (q->protocol == IPPROTO_TCP || q->protocol == IPPROTO_UDP)
		return true;
	/* A request's answer would be a reply, and a reply's a request. */
	q->icmp_type = is_icmp_request(type) ? ICMP_ECHOREPLY : ICMP_ECHO;
	q->sport = is_icmp_request(type) ? icmp_service(type) : l4->word[2];
	q->dport = is_icmp_request(type) ? l4->word[2] : icmp_service(type);
	return q->protocol == IPPROTO_ICMP && (is_icmp_request(type) || is_icmp_reply(type));
}

/* Reads what an ICMP error of `l3_length` bytes quotes. False if that can't be a packet of ours. */
__noinline int parse_quoted(struct __sk_buff *skb, __u32 l3_length, struct quoted *q)
{
	struct iphdr quoted = {};
	struct l4_start l4 = {};

	if (!q || bpf_skb_load_bytes(skb, QUOTED_IP, &quoted, sizeof(quoted)))
		return false;
	if (quoted.version != 4 || quoted.ihl < 5 || quoted.frag_off & bpf_htons(0x1fff))
		return false;
	q->l4 = QUOTED_IP + quoted.ihl * 4;
	if (q->l4 + QUOTED_L4_MIN > L3_OFFSET + l3_length || bpf_skb_load_bytes(skb, q->l4, &l4, sizeof(l4)))
		return false;
	q->sender = quoted.saddr;
	q->peer = quoted.daddr;
	q->protocol = quoted.protocol;
	return turn_quoted(q, &l4);
}

/* From then on `src`, ports and protocol are the conversation's. The error itself may come from any
 * router on the way there. */
static __always_inline enum vfr_verdict take_quoted(struct vfr_pkt *p)
{
	struct quoted q = {};

	if (!parse_quoted(p->skb, p->l3_length, &q) || q.sender != p->dst || (p->from && q.peer != p->src))
		return VFR_DROP_ICMP_ERROR;
	p->src = q.peer;
	p->sport = q.sport;
	p->dport = q.dport;
	p->l4_proto = q.protocol;
	p->icmp_type = q.icmp_type;
	p->quoted_l4 = q.l4;
	return VFR_CONTINUE;
}

/* The error's own checksum, and the quoted header's (RFC 5508 REQ-3, 3a). */
__noinline enum vfr_verdict check_quoted(struct __sk_buff *skb, __u32 l3_length, __u32 quoted_l4)
{
	__u32 length = l3_length - sizeof(struct iphdr);

	if (length > ICMP_ERROR_MAX)
		return VFR_DROP_ICMP_ERROR;
	return sums_to_ones(skb, L4_OFFSET, length) && sums_to_ones(skb, QUOTED_IP, quoted_l4 - QUOTED_IP)
		       ? VFR_CONTINUE
		       : VFR_DROP_ICMP_CHECKSUM;
}

/* An ICMP error from a VIF: the quoted packet was sent to the domain, by whom it now answers. */
static __always_inline enum vfr_verdict related(struct vfr_pkt *p)
{
	enum vfr_verdict verdict;

	if (!p->error)
		return VFR_CONTINUE;
	verdict = take_quoted(p);
	return verdict == VFR_CONTINUE ? check_quoted(p->skb, p->l3_length, p->quoted_l4) : verdict;
}

/* How a quote is to read on the other side, and the sum of what changed by it. */
struct requote {
	__be32 old, new;
	__be16 old_port, new_port;
	__u16 end;                   /* of the frame's IP packet */
	__u8 l4;                     /* where the quoted L4 header is */
	__u8 protocol;
	__u32 changed;
	bool outward;
};

/* Replaces a 16-bit word of the quote. Words stand in even places of the ICMP packet. */
static __always_inline bool put_word(struct __sk_buff *skb, struct requote *r, __u32 at, __be16 new)
{
	__be16 old;

	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)) || bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0))
		return false;
	r->changed += (__u16)~old + new;
	return true;
}

/* A checksum over words that changed by that difference (RFC 1624). */
static __always_inline __be16 adjusted(__be16 checksum, __u32 difference)
{
	return ~fold((__u64)(__u16)~checksum + difference);
}

static __always_inline __u32 by_port(const struct requote *r)
{
	return (__u16)~r->old_port + r->new_port;
}

static __always_inline __u32 by_address(const struct requote *r)
{
	__be32 out = ~r->old;

	return (__u16)out + (out >> 16) + (__u16)r->new + (r->new >> 16);
}

/* The quoted L4 checksum, if there is one and it is quoted. RFC 5508 REQ-3c: it is not judged. */
static __always_inline bool fix_quoted_l4(struct __sk_buff *skb, struct requote *r)
{
	__u32 at = r->l4 + offsetof(struct vfr_icmp, checksum), difference = by_port(r);
	__be16 checksum;

	if (r->protocol != IPPROTO_ICMP) {
		at = r->l4 + (r->protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check)
							 : offsetof(struct udphdr, check));
		difference += by_address(r);
	}
	if (at + sizeof(checksum) > r->end)
		return true;
	if (bpf_skb_load_bytes(skb, at, &checksum, sizeof(checksum)))
		return false;
	if (r->protocol == IPPROTO_UDP && !checksum)
		return true;
	checksum = adjusted(checksum, difference);
	return put_word(skb, r, at, checksum || r->protocol != IPPROTO_UDP ? checksum : 0xffff);
}

static __always_inline bool fix_quoted_ip(struct __sk_buff *skb, struct requote *r)
{
	__u32 at = QUOTED_IP + (r->outward ? offsetof(struct iphdr, daddr) : offsetof(struct iphdr, saddr));
	__u32 check_at = QUOTED_IP + offsetof(struct iphdr, check);
	__be16 check;

	return !bpf_skb_load_bytes(skb, check_at, &check, sizeof(check)) &&
	       put_word(skb, r, check_at, adjusted(check, by_address(r))) &&
	       put_word(skb, r, at, (__u16)r->new) && put_word(skb, r, at + 2, r->new >> 16);
}

/* Where the quoted port, or the query's identifier, is that `r` replaces. */
static __always_inline __u32 quoted_port_at(const struct requote *r)
{
	if (r->protocol == IPPROTO_ICMP)
		return r->l4 + offsetof(struct vfr_icmp, id);
	return r->l4 + (r->outward ? offsetof(struct udphdr, dest) : offsetof(struct udphdr, source));
}

__noinline enum vfr_verdict requote(struct __sk_buff *skb, struct requote *r)
{
	if (!r)
		return VFR_DROP_KERNEL;
	if (!fix_quoted_ip(skb, r) || !put_word(skb, r, quoted_port_at(r), r->new_port) || !fix_quoted_l4(skb, r))
		return VFR_DROP_KERNEL;
	return bpf_l4_csum_replace(skb, L4_OFFSET + offsetof(struct vfr_icmp, checksum), 0, fold(r->changed), 0)
		       ? VFR_DROP_KERNEL
		       : VFR_CONTINUE;
}

/* What is quoted was sent to the domain and goes to the LAN, or was sent to the LAN and goes to the
 * domain: its one address and port that the other side knows otherwise become what that side knows. */
static __always_inline enum vfr_verdict translate_quoted(struct vfr_pkt *p)
{
	struct requote r = { .end = L3_OFFSET + p->l3_length, .l4 = p->quoted_l4, .protocol = p->l4_proto };

	r.outward = !p->to;
	r.old = r.outward ? p->src : p->dst;
	r.new = r.outward ? p->config->outside_address : p->to->address;
	r.old_port = r.outward ? p->sport : p->dport;
	r.new_port = r.outward ? p->outside_port : p->inside_port;
	if (p->l4_proto == IPPROTO_ICMP && r.outward && !r.old_port)
		r.old_port = p->dport;
	return requote(p->skb, &r);
}

#endif
