/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the fastpath and its control plane share: verdicts, limits, and the layout of every map.
 *
 * This is the one definition. `tools/gen_abi.py` reads it back from the object's BTF and writes
 * `vfr/_abi.py`; a test regenerates and compares. So that everything arrives there:
 *   - an enum is used by a global variable (`#define`s and unused enums never reach BTF);
 *   - keys and values are declared with __type(), padding is explicit, sizes are asserted;
 *   - what is in network order has a __be type: it becomes a big-endian field in Python.
 */
#ifndef VFR_ABI_H
#define VFR_ABI_H

#include <linux/types.h>

/*
 * The named end of a packet. Everything that is counted, listed by `vfr stats`, or expected by a
 * test goes by these names. Passing has its reasons too.
 */
enum vfr_verdict {
	VFR_CONTINUE,            /* no stage has decided yet; never leaves the program */

	VFR_TO_DOMAIN,           /* to a guest's VIF */
	VFR_TO_DOM0,             /* to domain 0, through vfr0 */
	VFR_TO_LAN,              /* translated and out of the uplink */
	VFR_TO_SORTER,           /* to the kernel's own reassembly; what comes back is a frame of its own */
	VFR_HAIRPIN,             /* to a port of ours, by the LAN address: translated, then judged as from the LAN */
	VFR_ANSWERED,            /* the fastpath answered it itself (ARP, DHCP) */
	VFR_NOT_OURS,            /* on the uplink, and none of our business: the host's stack takes it */
	VFR_DHCP_NAK,            /* DHCP that asks for or uses another address than the domain's own, and is told so (NAK) */

	VFR_DROP_NOT_READY,      /* the VIF belongs to no domain yet, or no more */
	VFR_DROP_TRUNCATED,      /* a header runs past the end of the frame */
	VFR_DROP_VLAN,           /* a VLAN tag, by header or by offload */
	VFR_DROP_SRC_MAC,        /* the source MAC is not the domain's own */
	VFR_DROP_DST_MAC,        /* to a unicast MAC that is not the gateway's */
	VFR_DROP_GROUP_MAC,      /* an IP packet to a broadcast or multicast MAC */
	VFR_DROP_ETHERTYPE,      /* neither ARP nor IP, and no rule lets it go to whom it is for; 802.3 length fields included */
	VFR_DROP_IPV6,           /* IPv6 is not handled yet */

	VFR_DROP_ARP_HEADER,     /* ARP that is not Ethernet and IPv4, or no request or reply */
	VFR_DROP_ARP_SENDER,     /* the ARP sender is not the domain's own MAC and address */
	VFR_DROP_ARP_PROBE,      /* a duplicate address probe: silence says that the address is free */
	VFR_DROP_ARP_OWN,        /* asks for, or announces, the domain's own address */
	VFR_DROP_ARP_REPLY,      /* an ARP reply; nobody asked, since the fastpath never does */
	VFR_DROP_ARP_UNANSWERED, /* asks for an address the domain has no business with */

	VFR_DROP_IP_HEADER,      /* version, header length, total length or header checksum is wrong */
	VFR_DROP_SOURCE_ROUTE,   /* the sender wants to choose the way (RFC 7126 4.3, 4.4) */
	VFR_DROP_IP_OPTIONS,     /* any other IP option */
	VFR_DROP_SRC_IP,         /* the source address is not the domain's own */
	VFR_DROP_MARTIAN,        /* an address that no packet may carry here (RFC 1812 5.3.7) */
	VFR_DROP_MULTICAST,      /* to a multicast or broadcast address */
	VFR_DROP_FRAGMENT,       /* a fragment that can't be part of a datagram, or hides its L4 header */
	VFR_DROP_NO_SORTER,      /* it would have to be put in order or cut in pieces, and there is no sorter */
	VFR_DROP_FRAGMENTS_FULL, /* the quota of datagrams in fragments is used up */
	VFR_DROP_TTL,            /* the TTL ends here; answered with time exceeded */
	VFR_DROP_L4_HEADER,      /* a TCP, UDP or ICMP header that contradicts the packet's length */
	VFR_DROP_OFFLOAD,        /* asks for a checksum where none belongs, or to be cut where or as it must not be */
	VFR_DROP_PROTOCOL,       /* to the LAN: an IP protocol other than TCP, UDP, ICMP, whose answers NAT can't tell apart */
	VFR_DROP_ICMP_CHECKSUM,  /* an ICMP error whose checksum, or whose quoted header's, is wrong */
	VFR_DROP_ICMP_ERROR,     /* an ICMP error about no living conversation of its sender's */
	VFR_DROP_ICMP_TYPE,      /* ICMP that is neither echo nor timestamp nor an error to be passed on, redirects above all */

	VFR_DROP_DHCP_HEADER,    /* DHCP that is no client's whole request: its ports, length, fixed fields, or it comes in fragments */
	VFR_DROP_DHCP_CHECKSUM,  /* DHCP whose UDP checksum is wrong */
	VFR_DROP_DHCP_CLIENT,    /* DHCP for another hardware address than the domain's own */
	VFR_DROP_DHCP_OPTIONS,   /* DHCP whose options run past its end, come twice or overloaded, or lack what they must say */
	VFR_DROP_DHCP_TOO_FAST,  /* more DHCP a second than a guest is answered */
	VFR_DROP_DHCP_SILENT,    /* DHCP that wants no answer: a RELEASE, a DECLINE, or another server's offer is taken */

	VFR_DROP_NO_SESSION,     /* not the start of a conversation, and no conversation is known */
	VFR_DROP_UNSOLICITED,    /* from the LAN to a port of ours, from somebody never spoken to */
	VFR_DROP_NO_DOMAIN,      /* an address of the router's own range that nobody has */
	VFR_DROP_NO_UPLINK,      /* to the LAN while NAT is off */
	VFR_DROP_HAIRPIN,        /* to the router's own LAN address, at no port of ours */
	VFR_DROP_POLICY,         /* no rule allows it, or a rule denies it */
	VFR_DROP_REJECTED,       /* a rule rejects it: denied, and answered with administratively prohibited */
	VFR_DROP_SESSIONS_FULL,  /* the quota of sessions is used up */
	VFR_DROP_HALF_OPEN_FULL, /* the quota of TCP sessions without an answer is used up */
	VFR_DROP_TOO_FAST,       /* more new conversations a second than the quota, or than the rule's limit */
	VFR_DROP_PORTS_FULL,     /* the domain's port block is used up */
	VFR_DROP_TOO_BIG,        /* longer than the next interface's MTU; answered with fragmentation needed */
	VFR_DROP_KERNEL,         /* a kernel helper failed: no memory, or a packet it can't change */

	VFR_DROP_RATE_OUT,       /* more bits a second than the sender may send (--rate) */
	VFR_DROP_RATE_IN,        /* more bits a second than the receiver may be sent (--rate-in) */
	VFR_DROP_PPS_OUT,        /* more packets a second than the sender may send (--pps) */
	VFR_DROP_PPS_IN,         /* more packets a second than the receiver may be sent (--pps-in) */
	VFR_DROP_SHARE,          /* the uplink is overloaded, and the sender has had its share of it */

	VFR_VERDICTS,
};

/* Sizes and names that both sides must agree on. */
enum vfr_limit {
	VFR_SLOTS = 4096,             /* domains of one router, domain 0 (slot 0) included */
	VFR_ROW_LAN = 4096,           /* counters: what came in by the uplink */
	VFR_ROW_UNKNOWN = 4097,       /* counters: what came in by a VIF of no domain */
	VFR_ROWS = 4098,
	VFR_DHCP_PER_S = 10,          /* DHCP messages of one domain's that are looked at */
	VFR_DHCP_OPTIONS = 1232,      /* bytes of options: what an Ethernet frame has room for */
	VFR_DHCP_DNS = 3,             /* DNS servers that a guest is told of */
	VFR_LAN_EVENTS_PER_S = 100,   /* events of what came in by the uplink, or by a VIF of no domain */
	/* Nodes, by which the policy knows who is at an end. A slot is its domain's node; then: */
	VFR_NODE_GROUPS = 0x1000,     /* the first of those for all groups that a domain is in, */
	VFR_NODE_REMOTES = 0x2000,    /* and of those for all named blocks that an address lies in */
	VFR_NODE_HEADER = 0xfff0,     /* no node: rows of @policy that are about the policy itself */
	VFR_NODE_NONE = 0xfff1,       /* in no group, or in no named block */
	VFR_NODE_LOCAL = 0xfffc,      /* behind the uplink: its own network, and private ones */
	VFR_NODE_INTERNET = 0xfffd,   /* behind the uplink: the rest */
	VFR_NODE_LAN = 0xfffe,        /* everything behind the uplink, wherever an address does not matter */
	VFR_NODE_ANY = 0xffff,        /* everyone */
	VFR_PAIR_OPENS = 1,           /* flags of a pair's row: a rule in it lets something through, or rejects it; */
	VFR_PAIR_SHUTS = 2,           /* one denies everything; */
	VFR_PAIR_IS_RULE = 4,         /* the row is one rule, and for every IP protocol: its number, no set's */
	VFR_RULES = 1 << 18,          /* numbers of rules */
	VFR_PORT_SPACE = 65536,       /* outside ports of one protocol */
	VFR_MAX_VERDICTS = 64,        /* room in the counters, so that a new verdict moves nothing */
	VFR_CAPTURES_ALL = 4096,      /* @captures: the row whose time is that of all captures together */
	VFR_SNAP_MAX = 2048,          /* bytes of a frame that a capture may have */
	VFR_MARK_HAIRPIN = 0x56465201, /* skb->mark of a frame that we give to the uplink's hook ourselves: */
	VFR_MARK_HOST = 0x56465202,   /* to be judged as from the LAN; sorted, and meant for the host */
};

/* How a packet is handed to a domain. */
enum vfr_deliver {
	VFR_DELIVER_NONE,
	VFR_DELIVER_PEER,             /* a veth whose other end is in another namespace: straight into it */
	VFR_DELIVER_DEVICE,           /* a TAP or any other device: out of it */
	VFR_DELIVER_DOM0,             /* vfr0: into the host's stack */
};

/* Who holds an outside port. */
enum vfr_holder {
	VFR_PORT_FREE,
	VFR_PORT_MAPPING,             /* a mapping that a domain's own packet made */
	VFR_PORT_FORWARD,             /* a forward that the operator made */
};

/* What a rule does. */
enum vfr_action {
	VFR_ACTION_NONE,
	VFR_ACTION_ALLOW,
	VFR_ACTION_REJECT,            /* denied, and the sender is told */
	VFR_ACTION_DENY,
};

/* The three port spaces of @outside. */
enum vfr_space {
	VFR_SPACE_TCP,
	VFR_SPACE_UDP,
	VFR_SPACE_ICMP,
	VFR_SPACES,
};

/*
 * TCP as a router in the middle can know it (RFC 6146 3.5.2, RFC 7857 2). "Opener" sent the first
 * SYN, "peer" is the other end. The transitions are a table, @tcp_next in session.h. A conversation
 * is closing in the last two states: it still passes what belongs to it, for a shorter time. When room is needed,
 * the one that has been over longest is forgotten first; a reset that may be forged does not make it so.
 */
enum vfr_tcp_state {
	VFR_TCP_NONE,                 /* not TCP */
	VFR_TCP_OPENING,              /* the opener's SYN was seen; left by the peer's SYN or a RST */
	VFR_TCP_ANSWERED,             /* both SYNs were seen; left by a RST, or when the opener acknowledges
	                                 the peer's, which one that forged its address cannot */
	VFR_TCP_ESTABLISHED,          /* left by a FIN or a RST */
	VFR_TCP_FIN_OPENER,           /* the opener is done sending; left by the peer's FIN or a RST */
	VFR_TCP_FIN_PEER,             /* the peer is done sending; left by the opener's FIN or a RST */
	VFR_TCP_CLOSED,               /* over: both FINs, refused, or a RST that can be believed; left by time, or a
	                                 new SYN (then all anew) */
	VFR_TCP_RESET,                /* a RST from the LAN that anybody may have sent: left by time, or by traffic,
	                                 which restores it */
	VFR_TCP_STATES,
};

enum vfr_tcp_event {
	VFR_TCP_OPENER_SYN,
	VFR_TCP_OPENER_FIN,
	VFR_TCP_OPENER_RST,
	VFR_TCP_OPENER_OTHER,
	VFR_TCP_PEER_SYN,
	VFR_TCP_PEER_FIN,
	VFR_TCP_PEER_RST,
	VFR_TCP_PEER_OTHER,
	VFR_TCP_ABORT,                /* a RST that can be believed: a domain's, in whose name nobody else speaks, or
	                                 one with just the sequence number that is due (RFC 5961 3.2) */
	VFR_TCP_EVENTS,
};

/* How long the silence between two packets may last, in seconds. */
struct vfr_timers {
	__u32 tcp_opening_s;          /* RFC 5382 REQ-5: transitory, not below 240 */
	__u32 tcp_established_s;      /* RFC 5382 REQ-5: not below 7440 */
	__u32 tcp_closing_s;          /* RFC 7857 2.2: after both FINs, or a RST, 240 */
	__u32 udp_s;                  /* RFC 4787 REQ-5: not below 120, 300 recommended */
	__u32 dns_s;                  /* RFC 4787 REQ-5a: to UDP port 53, where a shorter time is known to do */
	__u32 icmp_s;                 /* RFC 5508 REQ-2: not below 60 */
	__u32 fragments_s;            /* between the first and the last fragment of a datagram */
};
_Static_assert(sizeof(struct vfr_timers) == 28, "vfr_timers");

/* @config, one row. Written by the control plane only. */
struct vfr_config {
	__u64 clock_ahead_ns;         /* added to CLOCK_MONOTONIC: 0, except where a test lets time pass */
	__be32 gateway;               /* domain 0's address on the router: what guests ask ARP for */
	__be32 pool_base;             /* the range that never crosses the uplink */
	__be32 pool_mask;
	__be32 outside_address;       /* domain 0's LAN address; 0 while NAT is off */
	__be32 lan_base;              /* the uplink's own subnet, for its broadcast addresses */
	__be32 lan_mask;
	__u32 uplink_ifindex;         /* 0 while NAT is off */
	__u32 uplink_mtu;
	__u32 sorter_ifindex;         /* our end of the sorter, see fragment.h; 0 if there is none */
	__u32 policy;                 /* number of the policy in force; a session of another is asked again */
	__u16 nat_low;                /* the range that port blocks are cut from, both ends included */
	__u16 nat_high;
	struct vfr_timers timers;
	__u64 uplink_rate;            /* bits a second that the uplink takes, to be shared; 0 if nobody has said */
};
_Static_assert(sizeof(struct vfr_config) == 88, "vfr_config");

/* How much a domain may have in one direction, by rate.h; 0 for any amount. */
struct vfr_cap {
	__u64 bits_per_s;
	__u32 packets_per_s;
	__u32 burst_us;               /* how far ahead of both it may run */
};
_Static_assert(sizeof(struct vfr_cap) == 16, "vfr_cap");

/* @domains, a row per slot. Written by the control plane only; generation 0 is an empty slot. */
struct vfr_domain {
	__u32 generation;             /* never the same for two domains, so a slot's next tenant differs */
	__be32 address;
	__u32 ifindex;                /* where packets to the domain are handed over */
	__u32 mtu;
	__u32 sessions;               /* quotas: what its tables have room for, */
	__u32 inbound;
	__u32 pieces;                 /* datagrams in fragments at a time */
	__u32 half_open;              /* TCP sessions without an answer, each way */
	__u32 new_per_s;              /* new conversations a second, each way; 0 for any number */
	__u32 errors_per_s;           /* ICMP errors sent to it a second */
	__u32 events_per_s;           /* drops of its that are told of in @events a second */
	__u16 port_low;               /* the port block, empty if port_count is 0 */
	__u16 port_count;
	__be32 guest_address;         /* what the guest believes (view.h); its own, if it is no clone */
	__be32 guest_gateway;         /* 0 if it takes the router for what it is */
	__u8 mac[6];
	__u8 guest_mac[6];
	__u8 deliver;                 /* enum vfr_deliver */
	__u8 is_clone;                /* the guest believes anything else than the router knows */
	__u8 is_capped;               /* any cap below is set */
	__u8 prefix;                  /* what its guest is told by DHCP (dhcp.h): how long its network's prefix is, */
	__u32 new_in_per_s;           /* new conversations with it that others begin a second; 0 for as many as it may */
	__u32 lease_s;                /* how long that holds, 0 if it is told nothing; */
	struct vfr_cap outward;           /* what it sends, */
	struct vfr_cap inward;            /* and what it is sent */
	__be32 dns[VFR_DHCP_DNS];     /* its DNS servers, 0 from the first that there is not */
	__u8 zero[4];
};
_Static_assert(sizeof(struct vfr_domain) == 128, "vfr_domain");

/* @sessions, @inbound: an inner map per slot. "Remote" is a LAN host or another domain. */
struct vfr_session_key {
	__be32 remote;
	__be16 remote_port;           /* of ICMP, the number of the request: 0 for echo */
	__be16 inside_port;           /* the echo identifier for ICMP */
	__u8 protocol;
	__u8 zero[3];
};
_Static_assert(sizeof(struct vfr_session_key) == 12, "vfr_session_key");

struct vfr_session {
	__u64 expires_ns;             /* CLOCK_MONOTONIC; past this, it is as if it were not there */
	__u32 policy;                 /* the policy that allowed it */
	__u32 peer_generation;        /* the domain at the other end, 0 for the LAN */
	__u16 peer;                   /* its slot, or VFR_NODE_LAN */
	__be16 outside_port;          /* what the LAN sees, 0 between domains */
	__u32 tcp_state;              /* enum vfr_tcp_state; a word, since it changes by compare-and-swap */
	__u32 sequence;               /* half open: the peer's initial sequence number; then: what the LAN's side
	                                 will say next */
	__u32 zero;
};
_Static_assert(sizeof(struct vfr_session) == 32, "vfr_session");

/* @mappings: an inner map per slot. The same outside port for every remote (RFC 4787 REQ-1). */
struct vfr_mapping_key {
	__be16 inside_port;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct vfr_mapping_key) == 4, "vfr_mapping_key");

struct vfr_mapping {
	__u64 expires_ns;             /* never before its last session's */
	__s32 open;                   /* TCP: its sessions that are not closing; negative while it is taken away */
	__be16 outside_port;
	__u8 zero[2];
};
_Static_assert(sizeof(struct vfr_mapping) == 16, "vfr_mapping");

/* @outside, indexed by space * VFR_PORT_SPACE + port: who is meant. Eight bytes, swapped at once. */
struct vfr_outside {
	__u16 slot;
	__be16 inside_port;
	__u16 holder;                 /* enum vfr_holder */
	__u16 claimed_s;              /* when, in seconds modulo 2^16: a claim may precede its mapping */
};
_Static_assert(sizeof(struct vfr_outside) == 8, "vfr_outside");

/*
 * @policy, one inner map, swapped whole: what is said about a pair of nodes. Rows that are about the policy itself:
 * (HEADER, HEADER) has the number of its @remotes, and in `flags` which levels any row is on (see policy.h); and
 * (slot, HEADER) has the node of the groups that a domain is in.
 */
struct vfr_pair_key {
	__u16 opener;
	__u16 target;
};
_Static_assert(sizeof(struct vfr_pair_key) == 4, "vfr_pair_key");

struct vfr_pair {
	__u32 number;                 /* of a set in @port_sets, or of a rule */
	__u32 flags;                  /* VFR_PAIR_* */
};
_Static_assert(sizeof(struct vfr_pair) == 8, "vfr_pair");

/* @remotes: the nodes of an address behind the uplink, as one word: zone << 16 | its blocks. */
struct vfr_remote_key {
	__u32 prefixlen;              /* 32 bits of policy, and up to 32 of address */
	__be32 policy;                /* as the header says */
	__be32 address;
};
_Static_assert(sizeof(struct vfr_remote_key) == 12, "vfr_remote_key");

/* @port_sets: the number of the rule that decides, for a protocol, or for a prefix of its ports. */
struct vfr_ports_key {
	__u32 prefixlen;              /* 32 bits of set, 8 of ether, 8 of protocol, and up to 16 of port */
	__be32 set;
	__u8 ether;                   /* 1 for raw Ethernet, whose EtherType is the port */
	__u8 protocol;
	__be16 port;                  /* the target's own; of ICMP, the number of the request, 0 for echo */
};
_Static_assert(sizeof(struct vfr_ports_key) == 12, "vfr_ports_key");

/* @macs. */
struct vfr_mac_key {
	__u8 mac[6];
	__u8 zero[2];
};
_Static_assert(sizeof(struct vfr_mac_key) == 8, "vfr_mac_key");

/* @rules, by number. */
struct vfr_rule {
	__u64 until_ns;               /* rate of the conversations that it let begin */
	__u64 packets;                /* that it decided about: those that begin a conversation, and those it refused */
	__u64 bytes;
	__u32 rank;                   /* of several rules the highest decides, of equals the lowest number; 0: no rule */
	__u32 per_s;                  /* conversations a second; 0 for any number */
	__u8 action;                  /* enum vfr_action */
	__u8 log;                     /* conversations that it lets begin are told of */
	__u8 zero[6];
};
_Static_assert(sizeof(struct vfr_rule) == 40, "vfr_rule");

/* @closing: the conversations that a domain may forget first, oldest first, in a queue a kind: those that are
 * over, and those from the LAN that have not begun. */
enum vfr_kind {
	VFR_KIND_LAN,                 /* in @sessions, and it holds an outside port */
	VFR_KIND_NEAR,                /* in @sessions, with another domain */
	VFR_KIND_INBOUND,             /* in @inbound */
	VFR_KIND_ENTERING,            /* in @inbound, and half open: whoever sent that SYN need not exist */
	VFR_KINDS,
};

struct vfr_closing {
	struct vfr_session_key key;
	__be16 outside_port;
	__u8 zero[2];
};
_Static_assert(sizeof(struct vfr_closing) == 16, "vfr_closing");

/* @fragments: an inner map per slot, and one for the LAN: what became of a datagram's first fragment. */
struct vfr_fragment_key {
	__be32 src;
	__be32 dst;
	__be16 id;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct vfr_fragment_key) == 12, "vfr_fragment_key");

enum vfr_way {
	VFR_WAY_SORT,                 /* a later one came first: all of them to the sorter */
	VFR_WAY_GO,                   /* the first one was let through: the others follow it */
	VFR_WAY_HOST,                 /* from the LAN, and the host's own */
};

struct vfr_fragment {
	__u64 expires_ns;
	__u32 policy;                 /* the policy that let the first one through */
	__u32 generation;             /* the receiver's, 0 for the LAN */
	__u32 seen;                   /* fragments of this datagram so far */
	__u16 to_node;
	__u16 first_end;              /* the first one's bytes of the datagram: no later one may begin before */
	__be16 new_id;                /* the identification they go on with */
	__u8 way;                     /* enum vfr_way */
	__u8 zero;
	__be32 remote;                /* what the policy was asked about it, for when the rules have changed since */
	__u16 opener;
	__u16 target;
	__be16 service;
	__u8 zero2[6];
};
_Static_assert(sizeof(struct vfr_fragment) == 48, "vfr_fragment");

/* How far one direction's caps are drawn on: each word says when its allowance will be whole again. */
struct vfr_credit {
	__u64 bits_until_ns;
	__u64 packets_until_ns;
};
_Static_assert(sizeof(struct vfr_credit) == 16, "vfr_credit");

/* @runtime, a row per slot and one for the LAN: what the fastpath notes down for itself. A new tenant
 * starts with zeros. A rate is one word, the time at which its allowance will be whole again. */
struct vfr_runtime {
	__u64 swept_ns;               /* when the row's full tables were last cleared of the dead */
	__u64 opened_until_ns;        /* rate of conversations that it opened */
	__u64 entered_until_ns;       /* rate of conversations that the LAN opened to it */
	__u64 errors_until_ns;        /* rate of ICMP errors sent to it */
	__u64 events_until_ns;        /* rate of its events */
	__u64 dhcp_until_ns;          /* rate of its DHCP */
	__s32 half_open;              /* TCP sessions in VFR_TCP_OPENING that it opened */
	__s32 half_open_inbound;      /* and that the LAN opened to it */
	__u32 untold;                 /* drops since the last event that nothing was said of */
	__u32 begun;                  /* conversations that began in its tables, modulo 2^32 */
	struct vfr_credit outward;        /* what it sends, */
	struct vfr_credit inward;         /* and what it is sent */
	__u64 share_until_ns;         /* its share of the uplink; of the LAN's row, the uplink itself */
	__u64 warned_ns;              /* and when it was last told, by a drop, that it has enough of it */
	__u64 fair_rate;              /* the LAN's row: bits a second of the uplink that nobody need exceed, */
	__u64 adjusted_ns;            /* and since when it is that; */
	__u32 active_at;              /* the second in which it was last counted among those that use the uplink; */
	__u32 active;                 /* the LAN's row: how many did in that second, */
	__u32 active_before;          /* and in the one before */
	__u32 zero;
};
_Static_assert(sizeof(struct vfr_runtime) == 144, "vfr_runtime");

/* @dhcp_work, one row a CPU: the DHCP message at hand. Too much for a program's stack, and for the verifier to follow. */
struct vfr_dhcp_work {
	__u32 head[18];               /* its IP, UDP and fixed BOOTP fields (dhcp.h), and then the answer's */
	__u32 at;                     /* of its options: the next, */
	__u32 end;                    /* and where there are no more */
	__be32 requested;             /* the address that it asks for, 0 if it names none, */
	__be32 server;                /* and the server that it speaks to */
	__u32 client_id;              /* where the client's identifier is among the options, */
	__u32 client_id_size;         /* and how long, with its code and length; 0 if there is none */
	__u8 message;                 /* its message type, and the answer's */
	__u8 reply;
	__u8 wrong;                   /* an option is not in order */
	__u8 ended;                   /* they end as they must */
	__u8 options[VFR_DHCP_OPTIONS + 256]; /* the client's; behind them room for one that would run past their end */
	__u8 answer[128];             /* ours, without the client's own identifier */
};
_Static_assert(sizeof(struct vfr_dhcp_work) == 1716, "vfr_dhcp_work");

/* @counters, a row per slot and CPU. A frame is counted once, where it came in. */
struct vfr_count {
	__u64 packets;                /* frames as the kernel hands them over: a GSO frame is one */
	__u64 bytes;
};

struct vfr_counters {
	struct vfr_count received;    /* what was delivered to this row's owner, whoever sent it */
	struct vfr_count errors;      /* ICMP errors that it was sent by the router */
	struct vfr_count by_verdict[VFR_MAX_VERDICTS];
};

/* @events: a drop that is told of, or what a rule with `log` let begin. Addresses and ports are 0 where the packet was not read that far. */
struct vfr_event {
	__u64 at_ns;                  /* CLOCK_MONOTONIC */
	__u32 row;                    /* the counters' row: whose packet it was */
	__u32 verdict;                /* enum vfr_verdict */
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u32 bytes;
	__u32 untold;                 /* how many of the same row's, before it, went without an event */
	__u32 rule;                   /* number of the rule that decided, 0 if none did */
	__be16 ethertype;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct vfr_event) == 48, "vfr_event");

/* @offload, one row a CPU: where a witness saw that a checksum is to be written, from the frame's start. */
struct vfr_offload {
	__u32 start;                  /* what is summed begins here */
	__u32 field;                  /* the sum goes here */
	__u8 partial;                 /* CHECKSUM_PARTIAL: the two above mean something */
	__u8 known;                   /* somebody has looked */
	__u8 zero[2];
};
_Static_assert(sizeof(struct vfr_offload) == 12, "vfr_offload");

/* @trace, one row: the last packet's way, written only by an object that was loaded for it. */
struct vfr_trace {
	__u32 verdict;                /* enum vfr_verdict */
	__u32 row;                    /* the counters' row */
	__u32 target;                 /* the receiver's slot, or VFR_NODE_LAN, if it was delivered */
	__u32 ifindex;                /* where it was handed over */
	__u32 rule;                   /* number of the rule that decided, 0 if none did */
	__be32 remote;                /* what the policy was asked: who is behind the uplink, if anybody, */
	__u16 opener;                 /* the nodes, */
	__u16 asked;
	__be16 service;               /* and the target's port */
	__be16 outside_port;          /* what the LAN sees, 0 if nothing */
	__u8 protocol;
	__u8 has_session;             /* it is part of a conversation that was there */
	__u8 was_asked;               /* the policy was asked at all */
	__u8 zero[5];
};
_Static_assert(sizeof(struct vfr_trace) == 40, "vfr_trace");

/*
 * @captures, a row per slot, and one for all. Whoever reads a capture moves its time on, and that of all: nothing else
 * of it changes while it goes on.
 */
struct vfr_capture {
	__u64 until_ns;               /* the fastpath's time; past this, nobody reads any more */
	__u64 wanted;                 /* a bit for each enum vfr_verdict */
	__u32 generation;             /* whose frames: a slot's next tenant has another */
	__u32 snap;                   /* so many bytes of a frame, VFR_SNAP_MAX at the most */
	__u32 per_s;                  /* frames a second; 0 for any number */
	__u32 zero;
};
_Static_assert(sizeof(struct vfr_capture) == 32, "vfr_capture");

/* @captured, a row per slot: what the fastpath notes down about its capture. */
struct vfr_captured {
	__u64 whole_ns;               /* rate */
	__u64 seen;                   /* wanted frames, of which these are lost: */
	__u64 too_fast;               /* more a second than were asked for, */
	__u64 no_room;                /* and those that the ring had no room for */
	__u32 untold;                 /* lost since the last one that is in the ring */
	__u32 zero;
};
_Static_assert(sizeof(struct vfr_captured) == 40, "vfr_captured");

/* How a frame came to be on a VIF. */
enum vfr_seen {
	VFR_SEEN_NOT,
	VFR_SEEN_FROM,                /* from the guest, as it sent it */
	VFR_SEEN_AGAIN,               /* the guest's, as the sorter gave it back */
	VFR_SEEN_TO,                  /* to the guest; or dropped on its way there, and then as it was at that point */
	VFR_SEEN_REPLY,               /* to the guest, made by the router: an answer, or an ICMP error */
};

/* What is in a capture's ring: `kept` bytes of frame are there, the rest of it is not. */
struct vfr_sight {
	__u64 at_ns;                  /* the fastpath's time, when it came in */
	__u32 verdict;                /* enum vfr_verdict; of a reply, of the frame that it answers */
	__u32 length;                 /* of the frame, in bytes, without a VLAN tag that was taken off it */
	__u32 kept;
	__u32 lost;                   /* wanted frames before it that are not in the ring */
	__u32 rule;                   /* number of the rule that decided, 0 if none was asked */
	__u32 other;                  /* at the other end: a slot, VFR_NODE_LAN, or VFR_NODE_NONE */
	__u32 gso_size;               /* it stands for segments with so many bytes each, 0 if for itself */
	__be16 outside_port;          /* what the LAN sees of its conversation, 0 if nothing */
	__be16 vlan_protocol;         /* of a VLAN tag that an interface took off it, 0 if none did, */
	__u16 vlan_tag;               /* and what it says */
	__u8 way;                     /* enum vfr_seen */
	__u8 zero[5];
	__u8 frame[VFR_SNAP_MAX];
};
_Static_assert(sizeof(struct vfr_sight) == 48 + VFR_SNAP_MAX, "vfr_sight");

_Static_assert((int)VFR_VERDICTS <= (int)VFR_MAX_VERDICTS, "make room in vfr_counters");

#endif
