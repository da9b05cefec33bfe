// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fastpath: every packet between domains, domain 0 and the LAN
 *
 * Theory of operation
 * ===================
 *
 *      domain web             domain db             domain 0, the host
 *     169.254.1.2            169.254.1.3            169.254.1.0 on vfr0
 *          |                      |                        |
 *      VIF |                  VIF |                  VIF 0 |
 *     @vif_ingress           @vif_ingress            @vif_ingress
 *          |                      |                        |
 *          +----------------------+------------------------+
 *      parse > guard > answer > view > fragment > related > session > policy > fits > rate > translate > deliver
 *          +----------------------+------------------------+--------------------+
 *          |                      |                                             |
 *          |               @sorter_ingress: the kernel's reassembly         @refuse
 *     @uplink_ingress  (parse and guard in uplink.h: only what is ours comes this far)
 *          |
 *        uplink ===== LAN
 *
 * A packet is judged once, on the hook of the interface it came in by; the redirect that delivers it
 * skips the receiver's hooks. Each stage is the header of its name and returns a verdict; the first
 * that is not VFR_CONTINUE is the packet's end. @finish is the only exit: it counts the verdict and
 * turns it into what the kernel is told; where a router owes the sender an ICMP error, @refuse makes one
 * of the packet. While somebody captures a VIF, what was on it goes into a ring, with its verdict (@see_arrival,
 * @note_end, capture.h).
 *
 * Identity comes from the interface: @vifs gives the slot, @domains the one MAC and address that its
 * frames may carry. Nothing a guest writes into a frame changes whose it is. Of a clone, one of several guests that
 * believe to have the same address and MAC, these are what the guest believes; from @enter_view to @leave_view
 * its packets carry the domain's own.
 *
 * A session is one conversation. It lies in the map of the domain that opened it (@sessions, an inner
 * map per slot), or, if the LAN opened it through a forward, in the domain's @inbound. The size of an
 * inner map is a quota that no other domain can touch. A mapping (@mappings) ties an inside port to
 * an outside port for all remotes; @outside finds the way back. Both say when they expire, and an
 * expired one is as good as none, so nothing depends on a process that cleans up. Limits (limit.h) and
 * timers are the control plane's to set; TCP's states are a table (@tcp_next).
 *
 * The rules are asked for the first packet of a conversation, and of each living one again when they have
 * changed (@ask_policy): rows of pairs of nodes (@policy), which lead to rules (@rules) or to sets of
 * prefixes of ports (@port_sets); what an address behind the uplink belongs to is in @remotes.
 *
 * Raw Ethernet leaves this way behind guard: to the domain that has the MAC (@macs), as it stands, if a rule
 * lets its EtherType go there (@find_mac). It makes no state.
 *
 * What a domain sends or is sent may be capped, in bits and in packets a second, and an overloaded uplink is shared
 * out (@keep_rates): behind policy, so that what no rule allows draws on nothing, and before any state is made or
 * moved, so that what is dropped has done nothing. What a quota refuses after that gets back what it drew
 * (@return_rates).
 *
 * The host keeps its own ports, also where they lie in our range and a program binds one late
 * (@host_owns). A new mapping passes it over (@claim_port); and on a port that a mapping had before, a
 * session's packets are the domain's, and all others the host's (@uplink_port).
 *
 * Three ways lead round. Fragments out of order, and packets that must be cut, go through the sorter, a
 * network namespace of ours that puts them in order and gives them back (@to_sorter). A domain that
 * speaks to a port of ours by the LAN address goes out as if to the LAN and in again by the uplink's
 * hook (@deliver_hairpin). An ICMP error about one of our conversations is looked up as an answer to
 * what it quotes, and the quote translated with it (@parse_quoted).
 *
 * Invariants
 *   - A VIF's frame ends in a redirect or a drop; only @uplink_ingress ever lets the host's stack
 *     have a frame, and only one that is not ours.
 *   - State is made after policy, and a quota is checked before state is made: full means no new
 *     ones, never somebody else's loss.
 *   - A slot's next tenant has another generation and new inner maps, so it inherits nothing.
 *   - What the control plane writes (@config, @domains, @policy, ...) the fastpath only reads; what
 *     the fastpath writes (@runtime, inner maps, @counters) nobody else does while a tenant lives. A row of
 *     @rules is entered before any row leads to it, and counts from then on.
 *   - @deliver_lan sends nothing that does not carry domain 0's LAN address as its source.
 *
 * NOTE: dropped under names of their own: IPv6, IP options, ICMP other than echo, timestamps and the errors
 * that say why a packet did not arrive, and, towards the LAN, protocols other than TCP, UDP and ICMP. Of other
 * protocols between domains ICMP errors are not passed on, since their headers are not read. Sequence numbers
 * are not tracked, but for the one that a TCP peer must acknowledge before it counts as there, and the one that
 * a RST from the LAN must have to be believed.
 */
#include <linux/pkt_cls.h>
#include "answer.h"
#include "capture.h"
#include "deliver.h"
#include "ether.h"
#include "rate.h"
#include "refuse.h"
#include "translate.h"
#include "uplink.h"

/* Enums reach BTF, and so Python, only through a variable that uses them. */
const volatile enum vfr_verdict abi_verdict = VFR_CONTINUE;
const volatile enum vfr_limit abi_limit = VFR_SLOTS;
const volatile enum vfr_deliver abi_deliver = VFR_DELIVER_NONE;
const volatile enum vfr_holder abi_holder = VFR_PORT_FREE;
const volatile enum vfr_action abi_action = VFR_ACTION_NONE;
const volatile enum vfr_kind abi_kind = VFR_KIND_LAN;
const volatile enum vfr_way abi_way = VFR_WAY_SORT;
const volatile enum vfr_seen abi_seen = VFR_SEEN_NOT;
const volatile enum vfr_space abi_space = VFR_SPACE_TCP;
const volatile enum vfr_tcp_state abi_tcp_state = VFR_TCP_NONE;
const volatile enum vfr_tcp_event abi_tcp_event = VFR_TCP_OPENER_SYN;

/* So do the types of inner maps, which are otherwise only named by a pointer. */
const volatile struct vfr_inner_types {
	struct vfr_session_key session_key;
	struct vfr_session session;
	struct vfr_mapping_key mapping_key;
	struct vfr_mapping mapping;
	struct vfr_pair_key pair_key;
	struct vfr_pair pair;
	struct vfr_closing closing;
	struct vfr_fragment_key fragment_key;
	struct vfr_fragment fragment;
	struct vfr_event event;
} abi_inner_types = {};

static __always_inline void count(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	__u32 receiver = p->to_node == VFR_NODE_LAN ? VFR_ROW_LAN : p->to_node;
	struct vfr_counters *row = bpf_map_lookup_elem(&counters, &p->row);

	if (row && verdict < VFR_MAX_VERDICTS)
		count_one(&row->by_verdict[verdict], p->skb->len);
	if (!is_delivery(verdict))
		return;
	row = bpf_map_lookup_elem(&counters, &receiver);
	if (row)
		count_one(&row->received, p->skb->len);
}

static __always_inline __u64 now(const struct vfr_config *config)
{
	return bpf_ktime_get_ns() + (config ? config->clock_ahead_ns : 0);
}

/* A frame that we gave to the uplink's hook ourselves says what for. Nobody else's frame bears a mark. */
static __always_inline enum vfr_verdict unmark(struct vfr_pkt *p)
{
	__u32 mark = p->skb->mark;

	if (mark != VFR_MARK_HAIRPIN && mark != VFR_MARK_HOST)
		return VFR_CONTINUE;
	p->skb->mark = 0;
	p->hairpin = mark == VFR_MARK_HAIRPIN;
	if (p->hairpin)
		return VFR_CONTINUE;
	return bpf_skb_change_type(p->skb, PACKET_HOST) ? VFR_DROP_KERNEL : VFR_NOT_OURS;
}

/* For who asks what becomes of a packet: its end, and what the policy was asked about it, if it was (@note_asked). */
static __always_inline void note_trace(const struct ending *end)
{
	struct vfr_trace *note = trace_row(VFR_TRACE_END), *asked = trace_row(VFR_TRACE_ASKED);
	struct vfr_config *config = config_now();
	struct vfr_domain *to = domain_in(end->to);

	if (!note || !asked || !config)
		return;
	*note = *asked;
	*asked = (struct vfr_trace){};
	note->verdict = end->verdict;
	note->row = end->row;
	note->rule = end->rule;
	note->outside_port = end->outside_port;
	note->protocol = end->protocol;
	note->has_session = end->has_session;
	note->target = is_delivery(end->verdict) ? end->to : VFR_NODE_ANY;
	note->ifindex = end->verdict == VFR_TO_LAN ? config->uplink_ifindex : to ? to->ifindex : 0;
}

/* Told of are drops, and what a rule that logs let begin. */
static __always_inline void tell_end(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	struct vfr_event event = {
		.at_ns = p->now,
		.row = p->row,
		.verdict = verdict,
		.src = p->src,
		.dst = p->dst,
		.sport = p->sport,
		.dport = p->dport,
		.bytes = p->skb->len,
		.rule = p->rule,
		.ethertype = p->l3_proto,
		.protocol = p->l4_proto,
	};

	tell(p->from ? p->from->events_per_s : VFR_LAN_EVENTS_PER_S, p->now, &event);
}

static __always_inline bool is_logged(const struct vfr_pkt *p)
{
	struct vfr_rule *rule = p->begun ? rule_number(p->rule) : NULL;

	return rule && rule->log;
}

/* NOTE: a function of its own, since it comes at the end of every path that the verifier walks. */
__noinline int note_end(struct __sk_buff *skb, const struct ending *end)
{
	if (!end)
		return 0;
	if (tracing)
		note_trace(end);
	see_end(skb, end);
	return 0;
}

/* For the captures of whose packet it was, and of whom it was for, and for who asks about it. NOTE: whatever
 * is read here keeps the verifier from taking two paths for the same, so what only a trace tells is not without one. */
static __always_inline void see(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	struct ending end = {
		.now = p->now,
		.verdict = verdict,
		.rule = p->rule,
		.row = p->row,
		.to = p->to_node,
		.outside_port = p->outside_port,
		.sorted = p->sorted,
	};

	if (tracing) {
		end.protocol = p->l4_proto;
		end.has_session = p->session != NULL;
	}
	note_end(p->skb, &end);
}

/* Sends the error that is due, if any. */
static __always_inline int drop(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	int action = refuse(p, verdict);

	if (action != TC_ACT_SHOT && is_capturing(p->now))
		see_error(p->skb, p->row);
	return action;
}

/* The one exit. */
static __always_inline int finish(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	count(p, verdict);
	if (tracing || is_capturing(p->now))
		see(p, verdict);
	switch (verdict) {
	case VFR_TO_DOMAIN:
	case VFR_TO_DOM0:
	case VFR_TO_LAN:
	case VFR_TO_SORTER:
	case VFR_HAIRPIN:
	case VFR_ANSWERED:
	case VFR_DHCP_NAK:
		if (is_logged(p))
			tell_end(p, verdict);
		return p->action;
	case VFR_NOT_OURS:
		/* Whoever is next on the hook, then the host's stack; for what the sorter had, back to it. */
		return p->sorted ? p->action : TC_ACT_UNSPEC;
	default:
		tell_end(p, verdict);
		return drop(p, verdict);
	}
}

static __always_inline enum vfr_verdict be_sender(struct vfr_pkt *p, __u32 slot)
{
	p->from_slot = slot;
	p->from = domain_in(slot);
	if (!p->from)
		return VFR_DROP_NOT_READY;
	p->row = slot;
	if (is_capturing(p->now))
		see_arrival(p->skb, slot, p->now);
	return VFR_CONTINUE;
}

/* Whose interface is this? */
static __always_inline enum vfr_verdict identify(struct vfr_pkt *p)
{
	__u32 ifindex = p->skb->ifindex;
	__u32 *slot = bpf_map_lookup_elem(&vifs, &ifindex);

	return slot && p->config ? be_sender(p, *slot) : VFR_DROP_NOT_READY;
}

static __always_inline enum vfr_verdict translate_or_return(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = translate(p);

	if (verdict != VFR_CONTINUE)
		return_rates(p);
	return verdict;
}

/* From here on, where the packet came from makes no difference. A later fragment goes by the policy
 * that its first one was asked about. */
static __always_inline enum vfr_verdict forward(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = p->later ? VFR_CONTINUE : apply_policy(p);

	if (verdict == VFR_CONTINUE)
		verdict = fits(p);
	if (verdict == VFR_CONTINUE)
		verdict = keep_rates(p);
	if (verdict == VFR_CONTINUE)
		verdict = translate_or_return(p);
	return verdict == VFR_CONTINUE ? deliver(p) : verdict;
}

/* A domain's IP packet that guard has passed. */
static __always_inline enum vfr_verdict from_domain(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = fragment(p);

	if (verdict == VFR_CONTINUE)
		verdict = related(p);
	if (verdict == VFR_CONTINUE && !p->later)
		verdict = session_from_vif(p);
	return verdict == VFR_CONTINUE ? forward(p) : verdict;
}

/* What the sorter gives back: whose it is, the source address says. */
static __always_inline enum vfr_verdict sorted(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = parse_ethernet(p);
	__u32 *slot;

	if (verdict == VFR_CONTINUE)
		verdict = p->l3_proto == bpf_htons(ETH_P_IP) ? parse_ip(p) : VFR_DROP_ETHERTYPE;
	if (verdict == VFR_CONTINUE)
		verdict = guard_ip_header(p);
	if (verdict != VFR_CONTINUE)
		return verdict;
	slot = bpf_map_lookup_elem(&addresses, &p->src);
	if (!slot) {
		p->row = VFR_ROW_LAN;
		verdict = uplink_packet(p);
		/* Only what came from the uplink's hook goes back to the host, and by that. */
		if (verdict == VFR_NOT_OURS && !p->action)
			return VFR_DROP_FRAGMENT;
		return verdict == VFR_CONTINUE ? forward(p) : verdict;
	}
	verdict = be_sender(p, *slot);
	if (verdict == VFR_CONTINUE)
		verdict = guard_target(p);
	if (verdict == VFR_CONTINUE)
		verdict = guard_l4(p);
	return verdict == VFR_CONTINUE ? from_domain(p) : verdict;
}

SEC("tc")
int vif_ingress(struct __sk_buff *skb)
{
	struct vfr_config *config = config_now();
	struct vfr_pkt p = { .skb = skb, .config = config, .now = now(config), .row = VFR_ROW_UNKNOWN,
			     .to_node = VFR_NODE_NONE };
	enum vfr_verdict verdict = identify(&p);

	if (verdict == VFR_CONTINUE)
		verdict = parse_ethernet(&p);
	if (verdict == VFR_CONTINUE)
		verdict = guard(&p);
	if (verdict == VFR_CONTINUE)
		verdict = answer(&p);
	if (verdict == VFR_CONTINUE)
		verdict = is_ether(&p) ? ether(&p) : enter_view(&p);
	if (verdict == VFR_CONTINUE)
		verdict = from_domain(&p);
	return finish(&p, verdict);
}

SEC("tc")
int uplink_ingress(struct __sk_buff *skb)
{
	struct vfr_config *config = config_now();
	struct vfr_pkt p = { .skb = skb, .config = config, .now = now(config), .row = VFR_ROW_LAN,
			     .to_node = VFR_NODE_NONE };
	enum vfr_verdict verdict = unmark(&p);

	if (verdict == VFR_CONTINUE)
		verdict = config ? uplink(&p) : VFR_NOT_OURS;
	if (verdict == VFR_CONTINUE)
		verdict = forward(&p);
	if (verdict == VFR_NOT_OURS && p.hairpin)
		verdict = VFR_DROP_HAIRPIN;
	return finish(&p, verdict);
}

SEC("tc")
int sorter_ingress(struct __sk_buff *skb)
{
	struct vfr_config *config = config_now();
	struct vfr_pkt p = { .skb = skb, .config = config, .now = now(config), .row = VFR_ROW_UNKNOWN,
			     .to_node = VFR_NODE_NONE, .sorted = true };

	return finish(&p, config ? sorted(&p) : VFR_DROP_NOT_READY);
}

/* Not for packets: run by the control plane, with a row in skb->mark, to clear its tables of the dead. */
SEC("tc")
int sweep_row(struct __sk_buff *skb)
{
	sweep(skb->mark, now(config_now()));
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
