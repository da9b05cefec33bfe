/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * parse: one look at the frame, into named and typed fields. Later stages read these and touch the
 * frame only to rewrite it.
 *
 * A sender decides how much of a frame lies in the linear part (AF_PACKET rings, TAP), so the
 * headers are pulled there before anything is read.
 */
#ifndef VFR_PARSE_H
#define VFR_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

#define L3_OFFSET sizeof(struct ethhdr)
#define L4_OFFSET (sizeof(struct ethhdr) + sizeof(struct iphdr)) /* options never get this far */
#define HEADERS_MAX (L4_OFFSET + sizeof(struct tcphdr))
#define PACKET_HOST 0 /* skb->pkt_type, as <linux/if_packet.h> has it */
#define PACKET_OTHERHOST 3
#define ICMP_ERROR_MAX 1536 /* no ICMP error that makes sense is longer */

/* RFC 826 and RFC 792. The kernel's own headers for these need a C library, which BPF has not. */
enum {
	ARPHRD_ETHER = 1,
	ARPOP_REQUEST = 1,
	ARPOP_REPLY = 2,

	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_REDIRECT = 5,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMP_TIMESTAMP = 13,
	ICMP_TIMESTAMPREPLY = 14,

	ICMP_NET_UNREACH = 0,        /* codes of ICMP_DEST_UNREACH */
	ICMP_HOST_UNREACH = 1,
	ICMP_FRAG_NEEDED = 4,
	ICMP_PROHIBITED = 13,
};

/* Ports of RFC 2131 4.1. */
enum {
	DHCP_SERVER = 67,
	DHCP_CLIENT = 68,
};

struct vfr_icmp {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;                   /* of a request or a reply */
	__be16 sequence;
};

/* An ARP packet for Ethernet and IPv4. */
struct vfr_arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender_ip;
	__u8 target_mac[ETH_ALEN];
	__be32 target_ip;
} __attribute__((packed));

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* The packet at hand: what parse read, then what each stage found out. */
struct vfr_pkt {
	struct __sk_buff *skb;
	struct vfr_config *config;
	__u64 now;
	int action;                  /* what the kernel is told, once a stage has delivered it */

	__u32 row;                   /* whose counters: the sender's slot, or VFR_ROW_* */
	__u32 from_slot;
	struct vfr_domain *from;     /* NULL if it came from the LAN */
	struct vfr_domain *to;       /* NULL if it goes to the LAN */
	__u32 to_node;               /* slot, or VFR_NODE_LAN */

	__be16 l3_proto;             /* ethertype */
	__u8 l4_proto;               /* whatever it says; of an ICMP error, the quoted one */
	__u8 l4_length;              /* of the header, in bytes; 0 for protocols that are not read */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 ttl;
	__u8 ihl;                    /* in 32-bit words */
	__u16 l3_length;             /* as the IP header says */
	__be16 fragment;             /* flag "more" and offset */
	__be16 id;
	__be32 src;
	__be32 dst;
	__be16 sport;                /* ICMP's identifier stands where the answer goes, a request's "source port", */
	__be16 dport;                /* a reply's "destination port"; on the other side, 0 for echo, or the request */

	bool dont_fragment;
	bool first;                  /* the first fragment of a datagram */
	bool later;                  /* any other fragment; it has no L4 header */
	bool sorted;                 /* it comes back from the sorter */
	bool hairpin;                /* its other end is a port of ours, spoken to by the LAN address */
	bool error;                  /* an ICMP error; ports and protocol are those of an answer to what it quotes */
	bool dhcp;                   /* a guest asks who it is */
	bool partial;                /* its L4 checksum is still to be completed (CHECKSUM_PARTIAL) */
	__u8 quoted_l4;              /* of an ICMP error: where the quoted L4 header is in the frame */

	struct vfr_session_key key;  /* of its conversation, in its opener's or its target's map */
	struct vfr_session *session; /* the living conversation it belongs to, if any */
	bool reply;                  /* it goes against the direction the conversation was opened in */
	bool inbound;                /* the conversation was opened by the LAN */
	bool new_mapping;            /* it was this packet that made its mapping */
	__u16 opener;                /* nodes and port that the policy is asked about */
	__u16 target;
	__be16 service;
	__u32 policy;                /* the number of the policy that it is held to, */
	__u32 rule;                  /* and of the rule that decided, if it was asked and one did */
	bool begun;                  /* it began a conversation */
	__be16 outside_port;         /* what the LAN sees for the domain */
	__be16 inside_port;          /* what the domain itself sees, if it came from the LAN */
	__be16 new_id;               /* the identification that it goes on with, if it may be fragmented */
};

/* Makes the headers readable and writable in the linear part, as far as the frame has any. */
static __always_inline void pull_headers(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 want = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;

	/* A failure leaves the headers short, which the stage that needs them then notices. */
	if (data + want > end)
		bpf_skb_pull_data(skb, want);
}

/* `size` bytes at `offset`, or NULL if the frame ends before. Good until a helper changes the skb. */
static __always_inline void *header(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	return data + offset + size <= end ? data + offset : NULL;
}

static __always_inline enum vfr_verdict parse_ethernet(struct vfr_pkt *p)
{
	struct ethhdr *eth;

	pull_headers(p->skb);
	eth = header(p->skb, 0, sizeof(*eth));
	if (!eth)
		return VFR_DROP_TRUNCATED;
	p->l3_proto = eth->h_proto;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict parse_ip(struct vfr_pkt *p)
{
	struct iphdr *ip = header(p->skb, L3_OFFSET, sizeof(*ip));

	if (!ip)
		return VFR_DROP_TRUNCATED;
	p->ihl = ip->ihl;
	p->ttl = ip->ttl;
	p->l4_proto = ip->protocol;
	p->l3_length = bpf_ntohs(ip->tot_len);
	p->fragment = ip->frag_off & bpf_htons(0x3fff);
	p->dont_fragment = ip->frag_off & bpf_htons(0x4000);
	p->later = p->fragment & bpf_htons(0x1fff);
	p->first = p->fragment && !p->later;
	p->id = p->new_id = ip->id;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	return VFR_CONTINUE;
}

static __always_inline enum vfr_verdict parse_tcp(struct vfr_pkt *p, __u32 room)
{
	struct tcphdr *tcp = header(p->skb, L4_OFFSET, sizeof(*tcp));

	if (!tcp || room < sizeof(*tcp))
		return VFR_DROP_L4_HEADER;
	p->l4_length = tcp->doff * 4;
	if (p->l4_length < sizeof(*tcp) || p->l4_length > room)
		return VFR_DROP_L4_HEADER;
	p->tcp_flags = ((__u8 *)tcp)[13];
	p->sport = tcp->source;
	p->dport = tcp->dest;
	return VFR_CONTINUE;
}

/* A first fragment's length field speaks of the whole datagram, of which most is yet to come. */
static __always_inline enum vfr_verdict parse_udp(struct vfr_pkt *p, __u32 room)
{
	struct udphdr *udp = header(p->skb, L4_OFFSET, sizeof(*udp));

	if (!udp || room < sizeof(*udp))
		return VFR_DROP_L4_HEADER;
	p->l4_length = sizeof(*udp);
	if (bpf_ntohs(udp->len) < sizeof(*udp) || (bpf_ntohs(udp->len) > room && !p->first))
		return VFR_DROP_L4_HEADER;
	p->sport = udp->source;
	p->dport = udp->dest;
	return VFR_CONTINUE;
}

/* The errors that say why a packet did not arrive. A source quench or a redirect is nobody's
 * business here (RFC 6633, RFC 1812 5.2.7.2). */
static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

static __always_inline bool is_icmp_request(__u8 type)
{
	return type == ICMP_ECHO || type == ICMP_TIMESTAMP;
}

static __always_inline bool is_icmp_reply(__u8 type)
{
	return type == ICMP_ECHOREPLY || type == ICMP_TIMESTAMPREPLY;
}

/* What stands for a request, or for what was requested, where TCP has the target's port. */
static __always_inline __be16 icmp_service(__u8 type)
{
	return type == ICMP_TIMESTAMP || type == ICMP_TIMESTAMPREPLY ? bpf_htons(ICMP_TIMESTAMP) : 0;
}

static __always_inline enum vfr_verdict parse_icmp(struct vfr_pkt *p, __u32 room)
{
	struct vfr_icmp *icmp = header(p->skb, L4_OFFSET, sizeof(*icmp));

	if (!icmp || room < sizeof(*icmp))
		return VFR_DROP_L4_HEADER;
	p->l4_length = sizeof(*icmp);
	p->icmp_type = icmp->type;
	p->error = is_icmp_error(icmp->type);
	if (p->error)
		return VFR_CONTINUE;
	if (is_icmp_request(icmp->type)) {
		p->sport = icmp->id;
		p->dport = icmp_service(icmp->type);
	} else if (is_icmp_reply(icmp->type)) {
		p->sport = icmp_service(icmp->type);
		p->dport = icmp->id;
	} else {
		return VFR_DROP_ICMP_TYPE;
	}
	return icmp->code ? VFR_DROP_ICMP_TYPE : VFR_CONTINUE;
}

/* Expects an IP header without options, of a packet that is no later fragment. */
static __always_inline enum vfr_verdict parse_l4(struct vfr_pkt *p)
{
	__u32 room = p->l3_length - sizeof(struct iphdr);

	switch (p->l4_proto) {
	case IPPROTO_TCP:
		return parse_tcp(p, room);
	case IPPROTO_UDP:
		return parse_udp(p, room);
	case IPPROTO_ICMP:
		return parse_icmp(p, room);
	default:
		p->l4_length = 0;
		return VFR_CONTINUE;
	}
}

/* Protocols whose ports, or identifiers, tell domains behind one address apart. */
static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP;
}

static __always_inline bool is_delivery(enum vfr_verdict verdict)
{
	return verdict == VFR_TO_DOMAIN || verdict == VFR_TO_DOM0 || verdict == VFR_TO_LAN;
}

static __always_inline __u32 space_of(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return VFR_SPACE_TCP;
	return protocol == IPPROTO_UDP ? VFR_SPACE_UDP : VFR_SPACE_ICMP;
}

/* Sums up bytes of a frame; see sum_bytes. */
struct summing {
	struct __sk_buff *skb;
	__u32 at, left;
	__s64 sum;
};

static long sum_chunk(__u32 i, struct summing *s)
{
	__u8 chunk[64] = {};
	__u32 size = s->left < sizeof(chunk) ? s->left : sizeof(chunk);

	if (!size)
		return 1;
	/* NOTE: the verifier of Linux 6.1 does not learn from `!= 0` that it is 1 at least. */
	barrier_var(size);
	size = ((size - 1) & (sizeof(chunk) - 1)) + 1;
	if (bpf_skb_load_bytes(s->skb, s->at, chunk, size)) {
		s->sum = -1;
		return 1;
	}
	s->sum = bpf_csum_diff(NULL, 0, (__be32 *)chunk, sizeof(chunk), s->sum);
	s->at += size;
	s->left -= size;
	return s->sum < 0;
}

/* The ones' complement sum of `length` bytes of the frame from `at` on; the first stands in an even
 * place. Begins with `before`. -1 if the frame ends too early, or there is too much to sum. */
__noinline __s64 sum_bytes(struct __sk_buff *skb, __u32 at, __u32 length, __u32 before)
{
	struct summing s = { .skb = skb, .at = at, .left = length, .sum = before };

	bpf_loop(ICMP_ERROR_MAX / 64, sum_chunk, &s, 0);
	return s.left ? -1 : s.sum;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

#endif
