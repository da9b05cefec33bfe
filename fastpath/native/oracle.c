// SPDX-License-Identifier: GPL-2.0-only
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../vfr_abi.h"
#include "frames.h"
#include "meter.h"
#include "oracle.h"
#include "world.h"

#define ROWS_MAX 64
#define BLOCK_MAX 64
#define ETH_IP_HEADERS 34
#define ERROR_HEADERS 28 /* what an ICMP error puts before its quote */

enum { SESSIONS, INBOUND, MAPPINGS, FRAGMENTS, TABLES };
static const char *const table_names[TABLES] = { "sessions", "inbound", "mappings", "fragments" };

struct row {
	__u8 key[16], value[48];
};

struct table {
	__u32 count, key_size, value_size;
	struct row rows[ROWS_MAX];
};

struct tables {
	struct table of[WORLD_SLOTS][TABLES];
	struct vfr_outside ports[WORLD_SLOTS][VFR_SPACES][BLOCK_MAX];
};

static const __u32 counter_rows[] = { 0, 1, 2, 3, VFR_ROW_LAN, VFR_ROW_UNKNOWN };
#define COUNTER_ROWS (sizeof(counter_rows) / sizeof(*counter_rows))

struct counted {
	__u64 packets[COUNTER_ROWS][VFR_MAX_VERDICTS], received;
};

/* The packet that is judged. */
static struct {
	__u32 sender;                /* who is held to it: a slot, or WORLD_LAN */
	bool sorted;
	__u32 length;
	__u64 now;
	bool partial;
	__u8 frame[NATIVE_FRAME_MAX];
	const struct native_result *end;
} p;

/* The maps that are looked at; by name, since only native.c sees their declarations. */
static struct {
	struct native_map *config, *domains, *outside, *counters, *tables[TABLES];
} maps;

static void find_maps(void)
{
	maps.config = native_map_named("config");
	maps.domains = native_map_named("domains");
	maps.outside = native_map_named("outside");
	maps.counters = native_map_named("counters");
	for (int which = 0; which < TABLES; which++)
		maps.tables[which] = native_map_named(table_names[which]);
}

static void *row_of(struct native_map *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

static const struct vfr_domain *domain_of(__u32 slot)
{
	return row_of(maps.domains, slot);
}

static __u32 word(const __u8 *at)
{
	__u32 value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static __u16 half(const __u8 *at)
{
	return at[0] << 8 | at[1];
}

/* Raw Ethernet, which is all that a domain may send beside IP and ARP. */
static bool is_raw(void)
{
	return half(p.frame + 12) != ETH_P_IP;
}

static bool is_later(const __u8 *frame)
{
	return half(frame + 20) & 0x1fff;
}

static bool is_icmp_error(const __u8 *frame)
{
	return frame[23] == IPPROTO_ICMP && !is_later(frame) && (frame[34] == 3 || frame[34] == 11 || frame[34] == 12);
}

/* From one domain to another, and not round by the LAN address. */
static bool is_near(void)
{
	return p.sender < WORLD_SLOTS && p.end->target < WORLD_SLOTS;
}

static bool is_delivery(void)
{
	return p.end->verdict == VFR_TO_DOMAIN || p.end->verdict == VFR_TO_DOM0 || p.end->verdict == VFR_TO_LAN;
}

static bool is_answer(void)
{
	return p.end->verdict == VFR_ANSWERED || p.end->verdict == VFR_DHCP_NAK;
}

/* Tables */

static void copy_table(__u32 slot, int which, struct table *out)
{
	const struct native_map *map = row_of(maps.tables[which], slot);
	const struct native_elem *elem = NULL;

	out->count = 0;
	out->key_size = map->key_size;
	out->value_size = map->value_size;
	native_check(map->count <= ROWS_MAX && map->key_size <= 16 && map->value_size <= 48, "make room in the oracle");
	while ((elem = native_next(map, elem))) {
		struct row *row = &out->rows[out->count++];

		memcpy(row->key, elem->key, map->key_size);
		memcpy(row->value, elem->value, map->value_size);
	}
}

static void copy_tables(struct tables *out)
{
	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++) {
		const struct vfr_domain *domain = domain_of(slot);

		for (int which = 0; which < TABLES; which++)
			copy_table(slot, which, &out->of[slot][which]);
		native_check(domain->port_count <= BLOCK_MAX, "make room in the oracle");
		for (__u32 space = 0; space < VFR_SPACES; space++)
			for (__u32 i = 0; i < domain->port_count; i++)
				out->ports[slot][space][i] = *(struct vfr_outside *)row_of(
					maps.outside, space * VFR_PORT_SPACE + domain->port_low + i);
	}
}

static const struct row *find(const struct table *table, const struct row *row)
{
	for (__u32 i = 0; i < table->count; i++)
		if (!memcmp(table->rows[i].key, row->key, table->key_size))
			return &table->rows[i];
	return NULL;
}

static __u64 expires(int which, const struct row *row)
{
	if (which == FRAGMENTS)
		return ((const struct vfr_fragment *)row->value)->expires_ns;
	return which == MAPPINGS ? ((const struct vfr_mapping *)row->value)->expires_ns
				 : ((const struct vfr_session *)row->value)->expires_ns;
}

/* A session whose rule is gone is cut by its next packet, whoever sends that: with the note that rules were
 * asked again, the one change that a packet may make to a table without being delivered. */
static bool was_cut(int which, const struct row *before, const struct row *after)
{
	struct row same = *before;

	if ((p.end->verdict != VFR_DROP_POLICY && p.end->verdict != VFR_DROP_REJECTED) || which >= MAPPINGS)
		return false;
	((struct vfr_session *)same.value)->expires_ns = 0;
	return !memcmp(&same.value, after->value, sizeof(struct vfr_session));
}

/* After a change of rules a session's next packet asks them again, and notes that, before anything can drop it. */
static bool was_asked_again(int which, const struct row *before, const struct row *after)
{
	struct row same = *before;

	if (which >= MAPPINGS)
		return false;
	((struct vfr_session *)same.value)->policy = ((const struct vfr_session *)after->value)->policy;
	return !memcmp(&same.value, after->value, sizeof(struct vfr_session));
}

static void check_unchanged(__u32 slot, int which, const struct table *before, const struct table *after)
{
	for (__u32 i = 0; i < before->count; i++) {
		const struct row *old = &before->rows[i], *now = find(after, old);

		native_check(now, "slot %u lost a row of its %s", slot, table_names[which]);
		native_check(!memcmp(old->value, now->value, before->value_size) || was_cut(which, old, now) ||
				     was_asked_again(which, old, now),
			     "a row of slot %u's %s was changed by %u", slot, table_names[which], p.sender);
	}
	native_check(before->count == after->count, "slot %u's %s grew", slot, table_names[which]);
}

/* What is over may be forgotten to make room, and what the LAN has only begun to open. */
static bool is_over(int which, const struct row *row)
{
	__u32 state = ((const struct vfr_session *)row->value)->tcp_state;

	return state == VFR_TCP_CLOSED ||
	       (which == INBOUND && (state == VFR_TCP_OPENING || state == VFR_TCP_ANSWERED));
}

/* And a mapping that nothing but that used. Nothing else. */
static bool may_be_forgotten(int which, const struct row *row)
{
	if (which == MAPPINGS)
		return ((const struct vfr_mapping *)row->value)->open <= 0 &&
		       ((const struct vfr_mapping_key *)row->key)->protocol == IPPROTO_TCP;
	return which != FRAGMENTS && is_over(which, row);
}

/* What lives stays: full means no new ones. */
static void check_kept(__u32 slot, int which, const struct table *before, const struct table *after)
{
	for (__u32 i = 0; i < before->count; i++)
		native_check(expires(which, &before->rows[i]) <= p.now || find(after, &before->rows[i]) ||
				     may_be_forgotten(which, &before->rows[i]),
			     "slot %u lost a living row of its %s", slot, table_names[which]);
}

static void check_gained_nothing(__u32 slot, int which, const struct table *before, const struct table *after)
{
	for (__u32 i = 0; i < after->count; i++)
		native_check(find(before, &after->rows[i]), "slot %u's %s gained a row by %u's packet", slot,
			     table_names[which], p.sender);
}

static void check_table(__u32 slot, int which, const struct table *before, const struct table *after)
{
	bool is_receiver = slot == p.end->target;

	/* Who a packet from the LAN was for is not told if it was dropped, and it may have swept full tables. */
	if (slot != p.sender && !is_receiver && (p.sender != WORLD_LAN || is_delivery())) {
		check_unchanged(slot, which, before, after);
		return;
	}
	check_kept(slot, which, before, after);
	if (slot != p.sender && !(which == INBOUND && p.sender == WORLD_LAN))
		check_gained_nothing(slot, which, before, after);
}

static __u32 space_of(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? VFR_SPACE_TCP : protocol == IPPROTO_UDP ? VFR_SPACE_UDP : VFR_SPACE_ICMP;
}

/* A mapping that lives has its outside port, and so to itself. */
static void check_mappings(__u32 slot, const struct table *mappings)
{
	for (__u32 i = 0; i < mappings->count; i++) {
		const struct vfr_mapping_key *key = (const void *)mappings->rows[i].key;
		const struct vfr_mapping *mapping = (const void *)mappings->rows[i].value;
		const struct vfr_outside *port = row_of(maps.outside, space_of(key->protocol) * VFR_PORT_SPACE +
									      bpf_ntohs(mapping->outside_port));

		native_check(mapping->expires_ns <= p.now ||
				     (port->holder == VFR_PORT_MAPPING && port->slot == slot &&
				      port->inside_port == key->inside_port),
			     "slot %u's inside port %u has lost its outside port %u", slot,
			     bpf_ntohs(key->inside_port), bpf_ntohs(mapping->outside_port));
	}
}

/* A mapping that did not live before has not taken a port of the host's own. */
static void check_new_mappings(__u32 slot, const struct table *before, const struct table *after)
{
	for (__u32 i = 0; i < after->count; i++) {
		const struct vfr_mapping_key *key = (const void *)after->rows[i].key;
		const struct vfr_mapping *mapping = (const void *)after->rows[i].value, *old;
		const struct row *row = find(before, &after->rows[i]);

		old = row ? (const void *)row->value : NULL;
		native_check(mapping->expires_ns <= p.now ||
				     (old && old->outside_port == mapping->outside_port && old->expires_ns > p.now) ||
				     !native_host_has(key->protocol, bpf_ntohs(mapping->outside_port)),
			     "slot %u has taken the host's port %u", slot, bpf_ntohs(mapping->outside_port));
	}
}

static void check_tables(const struct tables *before, const struct tables *after)
{
	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++) {
		for (int which = 0; which < TABLES; which++)
			check_table(slot, which, &before->of[slot][which], &after->of[slot][which]);
		check_mappings(slot, &after->of[slot][MAPPINGS]);
		check_new_mappings(slot, &before->of[slot][MAPPINGS], &after->of[slot][MAPPINGS]);
		native_check(slot == p.sender || !memcmp(before->ports[slot], after->ports[slot], sizeof(before->ports[slot])),
			     "slot %u's outside ports were changed by %u", slot, p.sender);
	}
}

/* Counters */

static void copy_counters(struct counted *out)
{
	out->received = 0;
	for (size_t i = 0; i < COUNTER_ROWS; i++) {
		const struct vfr_counters *row = row_of(maps.counters, counter_rows[i]);

		out->received += row->received.packets;
		for (__u32 verdict = 0; verdict < VFR_MAX_VERDICTS; verdict++)
			out->packets[i][verdict] = row->by_verdict[verdict].packets;
	}
}

/* Ends */

static void check_counters(struct counted *before, const struct counted *after)
{
	for (size_t i = 0; i < COUNTER_ROWS; i++)
		before->packets[i][p.end->verdict] += counter_rows[i] == p.end->row;
	native_check(!memcmp(before->packets, after->packets, sizeof(after->packets)),
		     "verdict %u of row %u was not counted exactly once", p.end->verdict, p.end->row);
	native_check(after->received == before->received + is_delivery(), "received was counted %llu times",
		     after->received - before->received);
}

static bool may_be_told(__u32 verdict)
{
	switch (verdict) {
	case VFR_DROP_TTL:
	case VFR_DROP_TOO_BIG:
	case VFR_DROP_REJECTED:
		return true;
	case VFR_DROP_NO_UPLINK:
	case VFR_DROP_SESSIONS_FULL:
	case VFR_DROP_HALF_OPEN_FULL:
	case VFR_DROP_TOO_FAST:
	case VFR_DROP_PORTS_FULL:
		return p.sender != WORLD_LAN;
	default:
		return false;
	}
}

static void check_end(const struct native_frame *frame)
{
	__u32 verdict = p.end->verdict, row = p.sender == WORLD_LAN ? VFR_ROW_LAN : p.sender;

	native_check(verdict > VFR_CONTINUE && verdict < VFR_VERDICTS, "verdict %u is no end", verdict);
	native_check(verdict != VFR_DROP_KERNEL || frame->fail_at, "a helper failed, or the last gate was needed");
	native_check(p.end->row == row || (p.sorted && p.end->row == VFR_ROW_UNKNOWN),
		     "a packet of %u was counted in row %u", p.sender, p.end->row);
	if (verdict == VFR_NOT_OURS) {
		native_check(p.sender == WORLD_LAN, "a VIF's packet was left to the host");
		if (p.sorted)
			native_check(p.end->action == TC_ACT_REDIRECT && p.end->mark == VFR_MARK_HOST &&
					     p.end->redirect_ifindex == WORLD_UPLINK_IFINDEX &&
					     p.end->redirect_flags == BPF_F_INGRESS, "the host's, but not back to it");
		else
			native_check(p.end->action == TC_ACT_UNSPEC && p.end->redirect == NATIVE_STAY,
				     "not ours, but gone");
		native_check(p.end->length == p.length && !memcmp(p.end->data, p.frame, p.length), "not ours, but changed");
	} else if (is_delivery() || is_answer() || verdict == VFR_TO_SORTER || verdict == VFR_HAIRPIN)
		native_check(p.end->action == TC_ACT_REDIRECT && p.end->redirect != NATIVE_STAY, "delivered, but where?");
	else if (p.end->action != TC_ACT_REDIRECT)
		native_check(p.end->action == TC_ACT_SHOT && p.end->redirect == NATIVE_STAY, "dropped, but gone somewhere");
	else
		native_check(may_be_told(verdict), "verdict %u was answered", verdict);
}

static bool is_our_own(const struct vfr_config *config, __u32 address)
{
	return (address & config->pool_mask) == config->pool_base ||
	       (address & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
}

static void check_on_the_lan(void)
{
	const struct vfr_config *config = row_of(maps.config, 0);

	native_check(p.end->redirect == NATIVE_NEIGH && p.end->redirect_ifindex == config->uplink_ifindex,
		     "out by interface %u", p.end->redirect_ifindex);
	native_check(frame_is_ip(p.end->data, p.end->length), "no IP on the LAN");
	native_check(word(p.end->data + 26) == config->outside_address, "an untranslated source on the LAN");
	native_check(!is_our_own(config, word(p.end->data + 30)), "an address of our own on the LAN");
}

static void check_at_a_domain(void)
{
	const struct vfr_config *config = row_of(maps.config, 0);
	const struct vfr_domain *to = domain_of(p.end->target);

	native_check(p.end->target < WORLD_SLOTS && p.end->target != p.sender, "delivered to %u", p.end->target);
	native_check(p.end->redirect_ifindex == to->ifindex && p.end->redirect_ifindex != config->uplink_ifindex,
		     "slot %u got it by interface %u", p.end->target, p.end->redirect_ifindex);
	native_check(!memcmp(p.end->data, to->mac, ETH_ALEN), "not the receiver's MAC");
	native_check(word(p.end->data + 30) == to->address, "not the receiver's address");
	native_check(p.end->pkt_type == 0, "the receiver's stack will not take it");
}

/* An ICMP error goes to who sent the packet, from the router, with all checksums right, and quotes it. */
static void check_refusal(void)
{
	const struct vfr_config *config = row_of(maps.config, 0);
	bool to_lan = p.sender == WORLD_LAN;
	__u32 quoted = p.end->length - ETH_IP_HEADERS - 8;

	native_check(p.end->data[23] == IPPROTO_ICMP && (p.end->data[34] == 3 || p.end->data[34] == 11), "no ICMP error");
	native_check(word(p.end->data + 30) == word(p.frame + 26), "an error to somebody else");
	native_check(word(p.end->data + 26) == (to_lan ? config->outside_address : config->gateway), "not from the router");
	native_check(frame_ip_checksum(p.end->data) == CHECKSUM_RIGHT, "an error with a wrong header checksum");
	native_check(p.partial || frame_l4_checksum(p.end->data, p.end->length, false) == CHECKSUM_RIGHT,
		     "an error with a wrong checksum");
	native_check(p.end->length <= ETH_HLEN + 576 && p.end->length > ETH_HLEN + ERROR_HEADERS + 20, "%u bytes",
		     p.end->length);
	native_check(!memcmp(p.end->data + ETH_IP_HEADERS + 8, p.frame + ETH_HLEN, quoted), "it quotes something else");
	native_check(to_lan ? p.end->redirect == NATIVE_NEIGH
			    : p.end->redirect_ifindex == domain_of(p.sender)->ifindex, "an error to another interface");
}

/* Into the sorter goes what came, but for one hop that the sorter will take. */
static void check_to_sorter(void)
{
	__u8 ttl = p.frame[22] < 255 ? p.frame[22] + 1 : 255;

	native_check(p.end->redirect_ifindex == WORLD_SORTER_IFINDEX && !p.end->redirect_flags, "not to the sorter");
	native_check(!p.sorted, "what comes from the sorter goes there again");
	native_check(p.end->length == p.length && p.end->data[22] == ttl, "changed on the way to the sorter");
	native_check(frame_ip_checksum(p.end->data) == CHECKSUM_RIGHT, "a wrong header checksum to the sorter");
	native_check(!memcmp(p.end->data + 26, p.frame + 26, p.length - 26), "changed on the way to the sorter");
}

static void check_hairpin(void)
{
	const struct vfr_config *config = row_of(maps.config, 0);

	native_check(p.sender != WORLD_LAN && p.end->mark == VFR_MARK_HAIRPIN, "a hairpin of %u's", p.sender);
	native_check(p.end->redirect_ifindex == WORLD_UPLINK_IFINDEX && p.end->redirect_flags == BPF_F_INGRESS,
		     "a hairpin that does not come in again");
	native_check(word(p.end->data + 26) == config->outside_address &&
			     word(p.end->data + 30) == config->outside_address, "a hairpin to elsewhere");
	native_check(p.end->data[22] == p.frame[22], "the hop is counted on the way in");
}

/* Behind a NAT, what may be put back: which conversation it is of, on the side that the LAN sees. */
static void put_back_translated(__u8 *frame)
{
	__u8 protocol = p.frame[23];

	memcpy(frame + 18, p.frame + 18, 2);
	memcpy(frame + 26, p.frame + 26, 8);
	if (is_icmp_error(p.frame))
		memcpy(frame + 36, p.frame + 36, p.length - 36); /* its quote is translated as well */
	else if (!is_later(p.frame) && protocol == IPPROTO_ICMP)
		memcpy(frame + 36, p.frame + 36, 4);
	else if (!is_later(p.frame)) {
		memcpy(frame + 34, p.frame + 34, 4);
		memcpy(frame + (protocol == IPPROTO_TCP ? 50 : 40), p.frame + (protocol == IPPROTO_TCP ? 50 : 40), 2);
	}
}

/* A router changes MACs, TTL and checksum, NAT its addresses and ports, and nobody anything else. */
static void check_nothing_else_changed(void)
{
	static __u8 back[NATIVE_FRAME_MAX];

	memcpy(back, p.end->data, p.end->length);
	memcpy(back, p.frame, 12);
	back[22] = p.frame[22];
	memcpy(back + 24, p.frame + 24, 2);
	if (!is_near())
		put_back_translated(back);
	native_check(!memcmp(back, p.frame, p.length), "more was changed than a router may");
}

/* Of each IP protocol, between domains no more than the rules open, in either direction; and to or from the LAN
 * only what has ports. Of ICMP the two queries, and errors. */
static void check_allowed(void)
{
	const __u8 *frame = p.end->data;
	__u8 protocol = is_icmp_error(frame) ? frame[34 + 8 + 9] : frame[23];

	if (is_near())
		native_check(world_may_open(p.sender, p.end->target, protocol) ||
				     world_may_open(p.end->target, p.sender, protocol),
			     "no rule lets protocol %u pass between %u and %u", protocol, p.sender, p.end->target);
	else
		native_check(protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP,
			     "protocol %u passed between %u and the LAN", protocol, p.sender);
	if (frame[23] == IPPROTO_ICMP && !is_later(frame) && !is_icmp_error(frame))
		native_check((frame[34] == 0 || frame[34] == 8 || frame[34] == 13 || frame[34] == 14) && !frame[35],
			     "ICMP type %u, code %u passed", frame[34], frame[35]);
}

/* A later fragment goes where its first went, as long as the rules in force let that through. */
static void check_led(void)
{
	const struct vfr_config *config = row_of(maps.config, 0);
	struct vfr_fragment_key key = { .src = word(p.frame + 26), .dst = word(p.frame + 30), .protocol = p.frame[23] };
	const struct vfr_fragment *note;

	if (!is_later(p.frame))
		return;
	memcpy(&key.id, p.frame + 18, sizeof(key.id));
	note = bpf_map_lookup_elem(row_of(maps.tables[FRAGMENTS], p.sender == WORLD_LAN ? VFR_ROW_LAN : p.sender), &key);
	native_check(note && note->way == VFR_WAY_GO && note->expires_ns > p.now, "a fragment was led by nothing");
	native_check(note->policy == config->policy, "a fragment passed by rules that are no more");
	native_check(note->to_node == p.end->target, "a fragment went elsewhere than its first");
	native_check(half(p.frame + 20) % 0x2000 * 8 >= note->first_end, "a fragment lies over its first");
	native_check(note->opener >= WORLD_SLOTS || note->target >= WORLD_SLOTS ||
			     world_may_open(note->opener, note->target, key.protocol), "no rule let its first pass");
}

/* As it stands, from one domain to the other that it is for, if a rule says so; and nobody remembers it. */
static void check_ether(const struct native_frame *frame, const struct tables *before, const struct tables *after)
{
	const struct vfr_domain *to = domain_of(p.end->target);
	__u16 ethertype = half(p.frame + 12);

	native_check(is_near() && !p.sorted && p.sender != p.end->target, "raw Ethernet from %u to %u", p.sender,
		     p.end->target);
	native_check(ethertype >= 0x600 && ethertype != ETH_P_ARP && ethertype != ETH_P_IPV6 && ethertype != ETH_P_8021Q &&
			     ethertype != ETH_P_8021AD && ethertype != 0x9100, "EtherType %04x as raw Ethernet", ethertype);
	native_check(world_may_send(p.sender, p.end->target, ethertype), "no rule lets EtherType %04x go from %u to %u",
		     ethertype, p.sender, p.end->target);
	native_check(!memcmp(p.frame, to->mac, ETH_ALEN) && !memcmp(p.frame + 6, domain_of(p.sender)->mac, ETH_ALEN),
		     "raw Ethernet between others");
	native_check(p.end->length == p.length && !memcmp(p.end->data, p.frame, p.length), "raw Ethernet was changed");
	native_check(!frame->vlan && !frame->partial && !frame->gso_size, "raw Ethernet with something left to do");
	native_check(p.length <= ETH_HLEN + to->mtu, "%u bytes are too many for an MTU of %u", p.length, to->mtu);
	native_check(p.end->redirect_ifindex == to->ifindex && p.end->pkt_type == 0, "the receiver will not take it");
	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++)
		for (int which = 0; which < TABLES; which++)
			check_unchanged(slot, which, &before->of[slot][which], &after->of[slot][which]);
}

static void check_one_hop_further(void)
{
	native_check(p.end->length == p.length, "%u bytes became %u", p.length, p.end->length);
	native_check(p.end->data[22] == p.frame[22] - 1, "TTL %u became %u", p.frame[22], p.end->data[22]);
	native_check(frame_ip_checksum(p.frame) == CHECKSUM_RIGHT && frame_ip_checksum(p.end->data) == CHECKSUM_RIGHT,
		     "a wrong header checksum was passed on");
	native_check(frame_l4_checksum(p.frame, p.length, p.partial) ==
			     frame_l4_checksum(p.end->data, p.end->length, p.partial),
		     "a checksum was %d and became %d", frame_l4_checksum(p.frame, p.length, p.partial),
		     frame_l4_checksum(p.end->data, p.end->length, p.partial));
	check_nothing_else_changed();
	check_allowed();
	check_led();
	if (p.end->target == VFR_NODE_LAN)
		check_on_the_lan();
	else
		check_at_a_domain();
}

/* DHCP: from the router to who asked, or to all, and no address but the domain's own is ever given. */
static void check_told(void)
{
	static const __u8 all[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	const struct vfr_config *config = row_of(maps.config, 0);
	const struct vfr_domain *own = domain_of(p.sender);
	const __u8 *data = p.end->data, *type = data + 282;
	bool to_all = word(data + 30) == 0xffffffff, nak = p.end->verdict == VFR_DHCP_NAK;

	native_check(p.sender < WORLD_SLOTS && own->lease_s, "DHCP with %u, of which nothing is said", p.sender);
	native_check(p.end->length >= 342 && p.end->length <= ETH_HLEN + 576, "%u bytes of DHCP", p.end->length);
	native_check(half(data + 16) == p.end->length - ETH_HLEN && half(data + 38) == p.end->length - 34, "its lengths");
	native_check(half(data + 34) == 67 && half(data + 36) == 68 && data[42] == 2, "DHCP that is no answer");
	native_check(word(data + 26) == config->gateway && (to_all || word(data + 30) == own->address),
		     "DHCP between others");
	native_check(!memcmp(data, to_all ? all : own->mac, ETH_ALEN), "DHCP to another MAC than it is for");
	native_check(!memcmp(data + 46, p.frame + 46, 4) && !memcmp(data + 70, p.frame + 70, 16), "an answer to another");
	native_check(type[0] == 53 && (type[2] == 6) == nak && (to_all || !nak), "NAK, or not");
	native_check(!word(data + 58) || (word(data + 58) == own->address && !nak), "another's address is given");
	native_check(frame_ip_checksum(data) == CHECKSUM_RIGHT &&
			     frame_l4_checksum(data, p.end->length, p.partial) == CHECKSUM_RIGHT, "wrong checksums of DHCP");
}

static void check_answered(const struct native_frame *frame)
{
	native_check(p.end->redirect == NATIVE_REDIRECT && p.end->redirect_ifindex == frame->ifindex &&
			     !p.end->redirect_flags, "an answer to somebody else");
	if (half(p.end->data + 12) == ETH_P_IP)
		check_told();
	else
		native_check(half(p.end->data + 12) == 0x0806 && p.end->verdict == VFR_ANSWERED, "an answer that is no ARP");
}

/* With VFR_SAY set, each packet and its end, so that a finding can become a Case. */
static void say(void)
{
	static int wanted = -1;

	if (wanted < 0)
		wanted = getenv("VFR_SAY") != NULL;
	if (!wanted)
		return;
	fprintf(stderr, "%llu sender %u, verdict %u, target %u: ", p.now, p.sender, p.end->verdict, p.end->target);
	for (__u32 i = 0; i < p.length; i++)
		fprintf(stderr, "%02x", p.frame[i]);
	fputc('\n', stderr);
}

/* Whose packet it is that the sorter gives back: its source says. */
static __u32 sender_of_sorted(const struct native_frame *frame)
{
	for (__u32 slot = 0; slot < WORLD_SLOTS; slot++)
		if (frame->length >= ETH_IP_HEADERS && word(frame->data + 26) == domain_of(slot)->address)
			return slot;
	return WORLD_LAN;
}

/* What draws on rates is what goes, and is no answer of the router's. A helper that fails may do so after that. */
static void check_rates(const struct native_frame *frame)
{
	switch (p.end->verdict) {
	case VFR_DROP_RATE_OUT:
	case VFR_DROP_RATE_IN:
	case VFR_DROP_PPS_OUT:
	case VFR_DROP_PPS_IN:
		return meter_dropped(p.sender, p.end->verdict, p.now);
	case VFR_DROP_KERNEL:
		return meter_lose();
	default:
		if (is_delivery() || p.end->verdict == VFR_HAIRPIN)
			meter_passed(p.sender, p.end->target, frame, p.end, p.now);
	}
}

/* A hairpin's other half: by the uplink's hook, with the mark that says so. */
static void come_in_again(struct native_frame *frame, __u64 now, struct native_result *result)
{
	static __u8 turned[NATIVE_FRAME_MAX];

	memcpy(turned, result->data, result->length);
	frame->data = turned;
	frame->length = result->length;
	frame->mark = VFR_MARK_HAIRPIN;
	oracle_run(frame, WORLD_LAN, now, result);
	frame->mark = 0;
}

void oracle_run(struct native_frame *frame, __u32 sender, __u64 now, struct native_result *result)
{
	static struct tables before, after;
	static struct counted counted_before, counted_after;

	if (!maps.config)
		find_maps();
	world_send(frame, sender);
	p.sorted = sender == WORLD_SORTER;
	p.sender = p.sorted ? sender_of_sorted(frame) : sender;
	p.now = now;
	p.length = frame->length;
	p.partial = frame->partial;
	p.end = result;
	memcpy(p.frame, frame->data, frame->length);
	copy_tables(&before);
	copy_counters(&counted_before);
	native_run(frame, result);
	say();
	copy_tables(&after);
	copy_counters(&counted_after);

	check_end(frame);
	check_rates(frame);
	check_counters(&counted_before, &counted_after);
	if (is_answer())
		check_answered(frame);
	else if (result->verdict == VFR_TO_SORTER)
		check_to_sorter();
	else if (result->verdict == VFR_HAIRPIN)
		check_hairpin();
	else if (result->verdict != VFR_NOT_OURS && !is_delivery() && result->action == TC_ACT_REDIRECT)
		check_refusal();
	if (is_delivery() && is_raw())
		check_ether(frame, &before, &after);
	else if (is_delivery())
		check_one_hop_further();
	check_tables(&before, &after);
	if (result->verdict == VFR_HAIRPIN)
		come_in_again(frame, now, result);
}
