/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dhcp: a guest asks who it is; the router knows by its interface, and tells it (RFC 2131).
 *
 *     0.0.0.0:68 -> 255.255.255.255:67    DISCOVER, REQUEST (selecting, init-reboot), DECLINE
 *     its own:68 -> 255.255.255.255:67    REQUEST (rebinding), INFORM
 *     its own:68 -> the router:67         REQUEST (renewing), INFORM, RELEASE
 *
 * There is one address for each VIF, so nothing is allocated, remembered or taken back: each message is answered
 * for itself, from the domain's row. What a clone's guest believes, it is told. A REQUEST or INFORM with another
 * address than the domain's gets a NAK; that may be the packet's own source as well, since it goes no further.
 *
 * A message is looked at in this order: rate, fixed fields, whose it is, checksum, options. The options are read
 * one after the other from a copy in @dhcp_work (@read_option), so that no length in them leads out of it. Then the
 * packet is cut behind the client's hardware address, grown again with zeros, and filled with the answer.
 *
 * NOTE: options in `file` and `sname` (overload) are refused, as is an option of ours that comes twice (RFC 3396
 * would join them); BOOTP without DHCP, and relays, are not for guests. The client's identifier has at most
 * 240 bytes, with which the answer still has the 576 bytes that any client must take.
 */
#ifndef VFR_DHCP_H
#define VFR_DHCP_H

#include "limit.h"

#define DHCP_AT (L4_OFFSET + sizeof(struct udphdr))
#define DHCP_COOKIE_AT (DHCP_AT + 236)
#define DHCP_OPTIONS_AT (DHCP_AT + 240)
#define DHCP_COOKIE bpf_htonl(0x63825363)
#define DHCP_LEAST 300 /* bytes of an answer, RFC 1542 2.1 */
#define DHCP_BROADCAST bpf_htons(0x8000)
#define CLIENT_ID_MAX 240

/* Messages (RFC 2132 9.6). */
enum {
	DHCP_NOTHING,
	DHCP_DISCOVER,
	DHCP_OFFER,
	DHCP_REQUEST,
	DHCP_DECLINE,
	DHCP_ACK,
	DHCP_NAK,
	DHCP_RELEASE,
	DHCP_INFORM,
};

/* Options (RFC 2132, 3442). */
enum {
	OPTION_PAD = 0,
	OPTION_MASK = 1,
	OPTION_ROUTER = 3,
	OPTION_DNS = 6,
	OPTION_MTU = 26,
	OPTION_REQUESTED = 50,
	OPTION_LEASE = 51,
	OPTION_OVERLOAD = 52,
	OPTION_MESSAGE = 53,
	OPTION_SERVER = 54,
	OPTION_CLIENT_ID = 61,
	OPTION_ROUTES = 121,
	OPTION_END = 255,
};

/* The fixed fields, without the names of server and file. */
struct dhcp_fixed {
	__u8 op, hardware, hardware_len, hops;
	__be32 xid;
	__be16 secs;
	__be16 flags;
	__be32 ciaddr;               /* the address that the client has, */
	__be32 yiaddr;               /* and the one that it is given */
	__be32 siaddr;
	__be32 giaddr;
	__u8 chaddr[16];
};

struct dhcp_headers {
	struct iphdr ip;
	struct udphdr udp;
	struct dhcp_fixed fixed;
};

_Static_assert(sizeof(struct dhcp_headers) == sizeof(((struct vfr_dhcp_work *)0)->head), "vfr_dhcp_work.head");

#define DHCP_CUT (L3_OFFSET + sizeof(struct dhcp_headers))

static __always_inline struct vfr_dhcp_work *dhcp_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&dhcp_work, &zero);
}

/* A size of 1 to `mask` + 1, made what it is anyway. NOTE: the verifier of Linux 6.1 does not learn from `!= 0` that it
 * is 1 at least. */
static __always_inline __u32 at_least_one(__u32 size, __u32 mask)
{
	barrier_var(size);
	size = ((size - 1) & mask) + 1;
	barrier_var(size);
	return size;
}

static __always_inline __be32 four_bytes(const __u8 *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (__u32)at[3] << 24; /* as it lies, on a little-endian machine */
}

static __always_inline void take_address(struct vfr_dhcp_work *w, __be32 *field, const __u8 *value, __u32 length)
{
	w->wrong |= length != sizeof(*field) || *field;
	*field = four_bytes(value);
	w->wrong |= !*field;
}

static __always_inline void take_option(struct vfr_dhcp_work *w, __u8 code, const __u8 *value, __u32 length)
{
	switch (code) {
	case OPTION_MESSAGE:
		w->wrong |= length != 1 || w->message || !value[0];
		w->message = value[0];
		break;
	case OPTION_REQUESTED:
		take_address(w, &w->requested, value, length);
		break;
	case OPTION_SERVER:
		take_address(w, &w->server, value, length);
		break;
	case OPTION_CLIENT_ID:
		w->wrong |= length < 2 || length > CLIENT_ID_MAX || w->client_id_size;
		w->client_id = w->at;
		w->client_id_size = length + 2;
		break;
	case OPTION_OVERLOAD:
		w->wrong = true;
		break;
	}
}

/* One option; nothing is left to read when it is not in order, or says that it is the last. */
static long read_option(__u32 i, void *context)
{
	struct vfr_dhcp_work *w = dhcp_now();
	const __u8 *option;
	__u32 at, length;

	if (!w)
		return 1;
	at = w->at;
	if (at >= w->end || at >= VFR_DHCP_OPTIONS)
		return 1;
	option = w->options + at;
	w->ended = option[0] == OPTION_END;
	if (option[0] == OPTION_PAD) {
		w->at = at + 1;
		return 0;
	}
	length = option[1];
	if (w->ended || at + 2 + length > w->end)
		return 1;
	take_option(w, option[0], option + 2, length);
	w->at = at + 2 + length;
	return w->wrong ? 1 : 0;
}

/* Reads `length` bytes of options. False if they are not in order. */
__noinline int read_options(struct __sk_buff *skb, __u32 length)
{
	struct vfr_dhcp_work *w = dhcp_now();

	if (!w || !length || length > VFR_DHCP_OPTIONS)
		return false;
	w->at = w->requested = w->server = w->client_id = w->client_id_size = 0;
	w->message = w->wrong = w->ended = 0;
	w->end = length;
	length = at_least_one(length, 2047);
	if (length > VFR_DHCP_OPTIONS || bpf_skb_load_bytes(skb, DHCP_OPTIONS_AT, w->options, length))
		return false;
	bpf_loop(VFR_DHCP_OPTIONS, read_option, NULL, 0);
	return w->ended && !w->wrong && w->message;
}

/* What the client is to be told, with the address that it says it has, if any. VFR_CONTINUE if that is what it asks
 * for, in w->reply. */
static __always_inline enum vfr_verdict decide(struct vfr_dhcp_work *w, __be32 has, __be32 own, __be32 router)
{
	bool foreign = (w->requested && w->requested != own) || (has && has != own);

	switch (w->message) {
	case DHCP_DISCOVER:
		w->reply = DHCP_OFFER;
		return VFR_ANSWERED;
	case DHCP_REQUEST:
		if (w->server && w->server != router)
			return VFR_DROP_DHCP_SILENT;
		if (!w->requested && !has)
			return VFR_DROP_DHCP_OPTIONS;
		break;
	case DHCP_INFORM:
		if (!has)
			return VFR_DROP_DHCP_OPTIONS;
		break;
	case DHCP_RELEASE:
	case DHCP_DECLINE:
		return VFR_DROP_DHCP_SILENT;
	default:
		return VFR_DROP_DHCP_OPTIONS;
	}
	w->reply = foreign ? DHCP_NAK : DHCP_ACK;
	return foreign ? VFR_DHCP_NAK : VFR_ANSWERED;
}

/* Appends an option; returns where the next begins. */
static __always_inline __u32 put(struct vfr_dhcp_work *w, __u32 at, __u8 code, const void *value, __u32 size)
{
	__u8 *to = w->answer + (at & (sizeof(w->answer) / 2 - 1));

	to[0] = code;
	to[1] = size;
	__builtin_memcpy(to + 2, value, size);
	return at + 2 + size;
}

/* RFC 3442: the router is on the link, and all others behind it. */
struct dhcp_routes {
	__u8 router_prefix;
	__be32 router;
	__be32 on_link;
	__u8 rest_prefix;
	__be32 rest_by;
} __attribute__((packed));

/* A router that is not in the guest's network is on the link all the same. NOTE: no initialiser, since of bytes that
 * are copied from a constant clang 14 may lose those before them. */
static __always_inline __u32 put_routes(struct vfr_dhcp_work *w, __u32 at, __be32 router)
{
	struct dhcp_routes routes;

	routes.router_prefix = 32;
	routes.router = routes.rest_by = router;
	routes.on_link = 0;
	routes.rest_prefix = 0;
	return put(w, at, OPTION_ROUTES, &routes, sizeof(routes));
}

static __always_inline __u32 put_dns(struct vfr_dhcp_work *w, __u32 at, const struct vfr_domain *domain)
{
	if (domain->dns[2])
		return put(w, at, OPTION_DNS, domain->dns, 12);
	if (domain->dns[1])
		return put(w, at, OPTION_DNS, domain->dns, 8);
	return domain->dns[0] ? put(w, at, OPTION_DNS, domain->dns, 4) : at;
}

/* What the guest can send without its being too long on the way out; never more than its own interface takes. */
static __always_inline __be16 mtu_told(const struct vfr_config *config, const struct vfr_domain *domain)
{
	__u32 mtu = config->uplink_mtu && config->uplink_mtu < domain->mtu ? config->uplink_mtu : domain->mtu;

	return bpf_htons(mtu);
}

/* Writes our options; returns how many bytes they are. */
static __always_inline __u32 write_options(struct vfr_dhcp_work *w, const struct vfr_config *config,
					   const struct vfr_domain *domain)
{
	__be32 router = gateway_seen(config, domain), lease = bpf_htonl(domain->lease_s);
	__be32 mask = domain->prefix ? bpf_htonl(~0U << ((32 - domain->prefix) & 31)) : 0;
	__be16 mtu = mtu_told(config, domain);
	__u32 at = put(w, 0, OPTION_MESSAGE, &w->reply, 1);

	at = put(w, at, OPTION_SERVER, &router, sizeof(router));
	if (w->reply == DHCP_NAK)
		return at;
	if (w->message != DHCP_INFORM)
		at = put(w, at, OPTION_LEASE, &lease, sizeof(lease));
	at = put(w, at, OPTION_MASK, &mask, sizeof(mask));
	if ((router ^ domain->guest_address) & mask)
		at = put_routes(w, at, router);
	at = put(w, at, OPTION_ROUTER, &router, sizeof(router));
	at = put(w, at, OPTION_MTU, &mtu, sizeof(mtu));
	return put_dns(w, at, domain);
}

/* Turns the question's headers into the answer's, whose `size` is that of all of its BOOTP message. RFC 2131 4.1 has
 * it go to the address that the client has, or to all if it has none and asks for that; a NAK goes to all. */
static __always_inline void turn_headers(struct dhcp_headers *h, __u8 message, __u8 reply, __u32 size, __be32 own,
					 __be32 router)
{
	struct dhcp_fixed *f = &h->fixed;
	bool to_all = reply == DHCP_NAK || (!f->ciaddr && message != DHCP_INFORM && f->flags & DHCP_BROADCAST);

	__builtin_memset(&h->ip, 0, sizeof(h->ip) + sizeof(h->udp));
	h->ip.version = 4;
	h->ip.ihl = 5;
	h->ip.tot_len = bpf_htons(sizeof(h->ip) + sizeof(h->udp) + size);
	h->ip.frag_off = bpf_htons(0x4000);
	h->ip.ttl = 64;
	h->ip.protocol = IPPROTO_UDP;
	h->ip.saddr = router;
	h->ip.daddr = to_all ? 0xffffffff : own;
	h->ip.check = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)&h->ip, sizeof(h->ip), 0));
	h->udp.source = bpf_htons(DHCP_SERVER);
	h->udp.dest = bpf_htons(DHCP_CLIENT);
	h->udp.len = bpf_htons(sizeof(h->udp) + size);
	f->op = 2;
	f->hops = 0;
	f->secs = 0;
	f->ciaddr = reply == DHCP_ACK ? f->ciaddr : 0;
	f->yiaddr = reply != DHCP_NAK && message != DHCP_INFORM ? own : 0;
	f->siaddr = f->giaddr = 0;
}

static __always_inline __u16 sum_pseudo(const struct dhcp_headers *h)
{
	return fold((__u64)h->ip.saddr + h->ip.daddr + bpf_htons(IPPROTO_UDP) + h->udp.len);
}

/* Behind the fixed fields: the cookie, our options, the client's own identifier as it sent it, and the end. */
static __always_inline bool store_options(struct __sk_buff *skb, const struct vfr_dhcp_work *w, __u32 length)
{
	__u32 size = w->client_id_size, from = w->client_id;
	__be32 cookie = DHCP_COOKIE;
	__u8 end = OPTION_END;

	if (!length || length > sizeof(w->answer) / 2 || size > CLIENT_ID_MAX + 2 || from >= VFR_DHCP_OPTIONS)
		return false;
	if (bpf_skb_store_bytes(skb, DHCP_COOKIE_AT, &cookie, sizeof(cookie), BPF_F_RECOMPUTE_CSUM))
		return false;
	if (bpf_skb_store_bytes(skb, DHCP_OPTIONS_AT, w->answer, at_least_one(length, 63), BPF_F_RECOMPUTE_CSUM))
		return false;
	if (size && bpf_skb_store_bytes(skb, DHCP_OPTIONS_AT + length, w->options + from, at_least_one(size, 255),
					BPF_F_RECOMPUTE_CSUM))
		return false;
	return !bpf_skb_store_bytes(skb, DHCP_OPTIONS_AT + length + size, &end, sizeof(end), BPF_F_RECOMPUTE_CSUM);
}

/* The UDP checksum of the answer, or the part of it that whoever sends a frame on expects of one to be completed. */
static __always_inline bool store_checksum(struct __sk_buff *skb, const struct dhcp_headers *h, bool partial)
{
	__s64 sum = sum_pseudo(h);
	__u16 check;

	if (!partial)
		sum = sum_bytes(skb, L4_OFFSET, bpf_ntohs(h->udp.len), sum);
	if (sum < 0)
		return false;
	check = partial ? sum : (__u16)~fold(sum);
	check = check ? check : 0xffff;
	return !bpf_skb_store_bytes(skb, L4_OFFSET + offsetof(struct udphdr, check), &check, sizeof(check),
				    BPF_F_RECOMPUTE_CSUM);
}

/* Makes the answer of the packet, with `length` bytes of our options. */
static __always_inline bool become_answer(struct __sk_buff *skb, const struct vfr_dhcp_work *w, struct dhcp_headers *h,
					  const struct vfr_config *config, const struct vfr_domain *domain, __u32 length,
					  bool partial)
{
	__u32 size = DHCP_OPTIONS_AT - DHCP_AT + length + w->client_id_size + 1;

	size = size < DHCP_LEAST ? DHCP_LEAST : size;
	turn_headers(h, w->message, w->reply, size, domain->guest_address, gateway_seen(config, domain));
	return !bpf_skb_change_tail(skb, DHCP_CUT, 0) && !bpf_skb_change_tail(skb, DHCP_AT + size, 0) &&
	       !bpf_skb_store_bytes(skb, L3_OFFSET, h, sizeof(*h), BPF_F_RECOMPUTE_CSUM) &&
	       store_options(skb, w, length) && store_checksum(skb, h, partial);
}

/* All that has a fixed place. */
static __always_inline enum vfr_verdict check_fixed(struct __sk_buff *skb, const struct dhcp_headers *h,
						    const struct vfr_domain *domain, bool partial)
{
	const struct dhcp_fixed *f = &h->fixed;
	__u32 size = bpf_ntohs(h->udp.len);
	__be32 cookie;
	__s64 sum;

	if (size <= DHCP_OPTIONS_AT - L4_OFFSET || size > DHCP_OPTIONS_AT - L4_OFFSET + VFR_DHCP_OPTIONS)
		return VFR_DROP_DHCP_HEADER;
	if (bpf_skb_load_bytes(skb, DHCP_COOKIE_AT, &cookie, sizeof(cookie)) || cookie != DHCP_COOKIE)
		return VFR_DROP_DHCP_HEADER;
	if (h->udp.source != bpf_htons(DHCP_CLIENT) || f->op != 1 || f->hardware != ARPHRD_ETHER ||
	    f->hardware_len != ETH_ALEN || f->giaddr)
		return VFR_DROP_DHCP_HEADER;
	if (!same_mac(f->chaddr, domain->guest_mac))
		return VFR_DROP_DHCP_CLIENT;
	if (h->ip.saddr && h->ip.saddr != domain->guest_address && h->ip.saddr != f->ciaddr)
		return VFR_DROP_SRC_IP;
	if (partial || !h->udp.check)
		return VFR_CONTINUE;
	sum = sum_bytes(skb, L4_OFFSET, size, sum_pseudo(h));
	return sum >= 0 && fold(sum) == 0xffff ? VFR_CONTINUE : VFR_DROP_DHCP_CHECKSUM;
}

/* A DHCP message of a domain's: its fate, and the packet made the answer if there is one. */
__noinline enum vfr_verdict dhcp(struct __sk_buff *skb, __u32 slot, __u32 partial)
{
	struct vfr_domain *domain = domain_in(slot);
	struct vfr_config *config = config_now();
	struct vfr_dhcp_work *w = dhcp_now();
	struct dhcp_headers *h;
	enum vfr_verdict verdict;
	__be32 has;

	if (!domain || !config || !w)
		return VFR_DROP_KERNEL;
	h = (struct dhcp_headers *)w->head;
	if (bpf_skb_load_bytes(skb, L3_OFFSET, h, sizeof(*h)))
		return VFR_DROP_DHCP_HEADER;
	verdict = check_fixed(skb, h, domain, partial);
	if (verdict != VFR_CONTINUE)
		return verdict;
	if (!read_options(skb, bpf_ntohs(h->udp.len) - (DHCP_OPTIONS_AT - L4_OFFSET)))
		return VFR_DROP_DHCP_OPTIONS;
	has = h->fixed.ciaddr || w->message != DHCP_INFORM ? h->fixed.ciaddr : h->ip.saddr;
	verdict = decide(w, has, domain->guest_address, gateway_seen(config, domain));
	if (verdict != VFR_ANSWERED && verdict != VFR_DHCP_NAK)
		return verdict;
	return become_answer(skb, w, h, config, domain, write_options(w, config, domain), partial)
		       ? verdict : VFR_DROP_KERNEL;
}

/* Back to the guest, by its own interface. */
static __always_inline enum vfr_verdict answer_dhcp(struct vfr_pkt *p)
{
	struct vfr_runtime *r = runtime_of(p->from_slot);
	enum vfr_verdict verdict;
	struct ethhdr *eth;
	struct iphdr *ip;

	if (!r || !within_rate(&r->dhcp_until_ns, p->now, VFR_DHCP_PER_S))
		return VFR_DROP_DHCP_TOO_FAST;
	verdict = dhcp(p->skb, p->from_slot, p->partial);
	if (verdict != VFR_ANSWERED && verdict != VFR_DHCP_NAK)
		return verdict;
	eth = header(p->skb, 0, sizeof(*eth) + sizeof(*ip));
	if (!eth)
		return VFR_DROP_KERNEL;
	ip = (void *)(eth + 1);
	if (ip->daddr == 0xffffffff)
		__builtin_memset(eth->h_dest, 0xff, ETH_ALEN);
	else
		__builtin_memcpy(eth->h_dest, p->from->guest_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, gateway_mac, ETH_ALEN);
	p->action = bpf_redirect(p->skb->ifindex, 0);
	return verdict;
}

#endif
