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
 *              parse > guard > answer > session > policy > fits > translate > deliver
 *          +------------------------------------------------------------+
 *          |
 *     @uplink_ingress  (parse and guard in uplink.h: only what is ours comes this far)
 *          |
 *        uplink ===== LAN
 *
 * A packet is judged once, on the hook of the interface it came in by; the redirect that delivers it
 * skips the receiver's hooks. Each stage is the header of its name and returns a verdict; the first
 * that is not VFR_CONTINUE is the packet's end. @finish is the only exit: it counts the verdict and
 * turns it into what the kernel is told.
 *
 * Identity comes from the interface: @vifs gives the slot, @domains the one MAC and address that its
 * frames may carry. Nothing a guest writes into a frame changes whose it is.
 *
 * A session is one conversation. It lies in the map of the domain that opened it (@sessions, an inner
 * map per slot), or, if the LAN opened it through a forward, in the domain's @inbound. The size of an
 * inner map is a quota that no other domain can touch. A mapping (@mappings) ties an inside port to
 * an outside port for all remotes; @outside finds the way back. Both say when they expire, and an
 * expired one is as good as none, so nothing depends on a process that cleans up.
 *
 * Invariants
 *   - A VIF's frame ends in a redirect or a drop; only @uplink_ingress ever lets the host's stack
 *     have a frame, and only one that is not ours.
 *   - State is made after policy, and a quota is checked before state is made: full means no new
 *     ones, never somebody else's loss.
 *   - A slot's next tenant has another generation and new inner maps, so it inherits nothing.
 *   - What the control plane writes (@config, @domains, @policy, ...) the fastpath only reads; what
 *     the fastpath writes (@runtime, inner maps, @counters) nobody else does while a tenant lives.
 *   - @deliver_lan sends nothing that does not carry domain 0's LAN address as its source.
 *
 * NOTE: not handled yet, and dropped under names of their own: IPv6, IP options, fragments, ICMP
 * other than echo, hairpinning, and the ICMP errors a router owes (TTL, MTU, policy).
 */
#include <linux/pkt_cls.h>
#include "answer.h"
#include "deliver.h"
#include "translate.h"
#include "uplink.h"

/* Set before loading by whoever wants each packet's end written to @trace: tests, `vfr explain`. */
const volatile __u8 tracing = 0;

/* Enums reach BTF, and so Python, only through a variable that uses them. */
const volatile enum vfr_verdict abi_verdict = VFR_CONTINUE;
const volatile enum vfr_limit abi_limit = VFR_SLOTS;
const volatile enum vfr_deliver abi_deliver = VFR_DELIVER_NONE;
const volatile enum vfr_holder abi_holder = VFR_PORT_FREE;
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
} abi_inner_types = {};

static __always_inline bool is_delivery(enum vfr_verdict verdict)
{
	return verdict == VFR_TO_DOMAIN || verdict == VFR_TO_DOM0 || verdict == VFR_TO_LAN;
}

static __always_inline void count_one(struct vfr_count *count, __u32 bytes)
{
	count->packets++;
	count->bytes += bytes;
}

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

static __always_inline void note_trace(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	__u32 zero = 0;
	struct vfr_trace *end = bpf_map_lookup_elem(&trace, &zero);

	if (!end)
		return;
	end->verdict = verdict;
	end->row = p->row;
	end->target = is_delivery(verdict) ? p->to_node : VFR_NODE_ANY;
	end->ifindex = verdict == VFR_TO_LAN ? p->config->uplink_ifindex : p->to ? p->to->ifindex : 0;
}

/* The one exit. */
static __always_inline int finish(struct vfr_pkt *p, enum vfr_verdict verdict)
{
	count(p, verdict);
	if (tracing)
		note_trace(p, verdict);
	if (verdict == VFR_NOT_OURS)
		return TC_ACT_UNSPEC; /* whoever is next on the hook, then the host's stack */
	return is_delivery(verdict) || verdict == VFR_ANSWERED ? p->action : TC_ACT_SHOT;
}

/* Whose interface is this? */
static __always_inline enum vfr_verdict identify(struct vfr_pkt *p)
{
	__u32 ifindex = p->skb->ifindex;
	__u32 *slot = bpf_map_lookup_elem(&vifs, &ifindex);

	if (!slot || !p->config)
		return VFR_DROP_NOT_READY;
	p->from_slot = *slot;
	p->from = domain_in(*slot);
	if (!p->from)
		return VFR_DROP_NOT_READY;
	p->row = *slot;
	return VFR_CONTINUE;
}

/* From here on, where the packet came from makes no difference. */
static __always_inline enum vfr_verdict forward(struct vfr_pkt *p)
{
	enum vfr_verdict verdict = apply_policy(p);

	if (verdict == VFR_CONTINUE)
		verdict = fits(p);
	if (verdict == VFR_CONTINUE)
		verdict = translate(p);
	return verdict == VFR_CONTINUE ? deliver(p) : verdict;
}

SEC("tc")
int vif_ingress(struct __sk_buff *skb)
{
	struct vfr_pkt p = { .skb = skb, .config = config_now(), .now = bpf_ktime_get_ns(),
			     .row = VFR_ROW_UNKNOWN };
	enum vfr_verdict verdict = identify(&p);

	if (verdict == VFR_CONTINUE)
		verdict = parse_ethernet(&p);
	if (verdict == VFR_CONTINUE)
		verdict = guard(&p);
	if (verdict == VFR_CONTINUE)
		verdict = answer(&p);
	if (verdict == VFR_CONTINUE)
		verdict = session_from_vif(&p);
	if (verdict == VFR_CONTINUE)
		verdict = forward(&p);
	return finish(&p, verdict);
}

SEC("tc")
int uplink_ingress(struct __sk_buff *skb)
{
	struct vfr_pkt p = { .skb = skb, .config = config_now(), .now = bpf_ktime_get_ns(),
			     .row = VFR_ROW_LAN };
	enum vfr_verdict verdict = p.config ? uplink(&p) : VFR_NOT_OURS;

	if (verdict == VFR_CONTINUE)
		verdict = forward(&p);
	return finish(&p, verdict);
}

char _license[] SEC("license") = "GPL";
