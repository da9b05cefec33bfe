/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * refuse: the ICMP error that a router owes the sender of a packet it does not forward.
 *
 * The packet itself becomes the error: cut to what may be quoted, as its sender sent it, with two
 * headers put before. At a rate per receiver, and never about an ICMP error, a later fragment, or
 * anything that guard refused (RFC 1812 4.3.2.7): a sender that lies about itself is told nothing.
 */
#ifndef VFR_REFUSE_H
#define VFR_REFUSE_H

#include "deliver.h"
#include "limit.h"

#define QUOTE_MAX (576 - sizeof(struct iphdr) - sizeof(struct vfr_icmp)) /* RFC 1812 4.3.2.3 */
#define LAN_ERRORS_PER_S 100 /* to all of the LAN together */

/* Type, code, and the link's MTU where it is asked for; 0 where silence is the answer. */
struct reason {
	__u8 type, code;
	__u16 mtu;
};

static __always_inline struct reason reason_for(const struct vfr_pkt *p, enum vfr_verdict verdict)
{
	switch (verdict) {
	case VFR_DROP_TTL:
		return (struct reason){ ICMP_TIME_EXCEEDED, 0, 0 };
	case VFR_DROP_TOO_BIG:
		return (struct reason){ ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, next_mtu(p) };
	case VFR_DROP_REJECTED:
		return (struct reason){ ICMP_DEST_UNREACH, ICMP_PROHIBITED, 0 };
	case VFR_DROP_NO_UPLINK:
		return (struct reason){ p->from ? ICMP_DEST_UNREACH : 0, ICMP_NET_UNREACH, 0 };
	/* RFC 6888 REQ-11B. The LAN is told nothing: its flood would have us answer addresses it made up. */
	case VFR_DROP_SESSIONS_FULL:
	case VFR_DROP_HALF_OPEN_FULL:
	case VFR_DROP_TOO_FAST:
	case VFR_DROP_PORTS_FULL:
		return (struct reason){ p->from ? ICMP_DEST_UNREACH : 0, ICMP_HOST_UNREACH, 0 };
	default:
		return (struct reason){};
	}
}

static __always_inline bool may_refuse(struct vfr_pkt *p)
{
	struct vfr_runtime *r = runtime_of(p->from ? p->from_slot : VFR_ROW_LAN);

	if (p->error || p->later || (!p->from && p->hairpin))
		return false;
	return r && within_rate(&r->errors_until_ns, p->now, p->from ? p->from->errors_per_s : LAN_ERRORS_PER_S);
}

struct error_headers {
	struct iphdr ip;
	struct vfr_icmp icmp;        /* its last word is the next hop's MTU (RFC 1191) */
};

/* An error to be made. */
struct refusal {
	struct reason why;
	__be32 from, to;
	__u16 quote;                 /* bytes of the packet that it quotes */
	__u16 partial_at;            /* where a checksum is still to be completed, 0 if none is */
};

/* The sum that the quote will have on a wire. A checksum that is still to be completed makes of its L4
 * packet a whole that sums up to the complement of what now stands in its field. */
static __always_inline __s64 sum_quote(struct __sk_buff *skb, const struct refusal *r)
{
	__be16 field;

	if (!r->partial_at)
		return sum_bytes(skb, L3_OFFSET, r->quote, 0);
	if (bpf_skb_load_bytes(skb, r->partial_at, &field, sizeof(field)))
		return -1;
	return sum_bytes(skb, L3_OFFSET, sizeof(struct iphdr), (__u16)~field);
}

static __always_inline void fill_headers(struct error_headers *h, const struct refusal *r, __u32 sum)
{
	h->ip.version = 4;
	h->ip.ihl = 5;
	h->ip.tos = 0xc0; /* internetwork control, RFC 1812 4.3.2.5 */
	h->ip.tot_len = bpf_htons(sizeof(*h) + r->quote);
	h->ip.frag_off = bpf_htons(0x4000);
	h->ip.ttl = 64;
	h->ip.protocol = IPPROTO_ICMP;
	h->ip.saddr = r->from;
	h->ip.daddr = r->to;
	h->ip.check = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)&h->ip, sizeof(h->ip), 0));
	h->icmp.type = r->why.type;
	h->icmp.code = r->why.code;
	h->icmp.sequence = bpf_htons(r->why.mtu);
	h->icmp.checksum = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)&h->icmp, sizeof(h->icmp), sum));
}

/* Makes the error of the packet. False if the kernel would not: then it is simply dropped. */
__noinline int make_error(struct __sk_buff *skb, const struct refusal *r)
{
	struct error_headers h = {};
	__s64 sum;

	if (!r || bpf_skb_change_tail(skb, L3_OFFSET + r->quote, 0))
		return false;
	sum = sum_quote(skb, r);
	if (sum < 0 || bpf_skb_adjust_room(skb, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
		return false;
	fill_headers(&h, r, fold(sum));
	return !bpf_skb_store_bytes(skb, L3_OFFSET, &h, sizeof(h), 0);
}

static __always_inline bool become_error(struct vfr_pkt *p, const struct reason *why)
{
	struct refusal r = {
		.why = *why,
		.from = p->from ? gateway_seen(p->config, p->from) : p->config->outside_address,
		.to = p->from ? p->from->guest_address : p->src,
		.quote = p->l3_length < QUOTE_MAX ? p->l3_length : QUOTE_MAX,
		.partial_at = p->partial ? l4_checksum_offset(p->l4_proto) : 0,
	};

	return (!p->from || restore_view(p)) && make_error(p->skb, &r);
}

/* Sends the error that is due for a drop, if any. Returns what the kernel is told. */
static __always_inline int refuse(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	struct reason why = reason_for(p, verdict);
	struct vfr_counters *row;

	/* What asks who it is, is told that or nothing; the verifier need not look further. */
	if (p->dhcp || !why.type || !may_refuse(p) || !become_error(p, &why))
		return TC_ACT_SHOT;
	row = bpf_map_lookup_elem(&counters, &p->row);
	if (row)
		count_one(&row->errors, p->skb->len);
	if (!p->from)
		return bpf_redirect_neigh(p->config->uplink_ifindex, NULL, 0, 0);
	p->to = p->from;
	return is_delivery(hand_over(p)) ? p->action : TC_ACT_SHOT;
}

#endif
