/* SPDX-License-Identifier: GPL-2.0-only */
/* maps: the fastpath's state. Layouts and what each field means are in vfr_abi.h. */
#ifndef VFR_MAPS_H
#define VFR_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "vfr_abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vfr_config);
} config SEC(".maps");

/* VIF interface index -> slot: the identity that everything else follows from. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * VFR_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} vifs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__type(value, struct vfr_domain);
} domains SEC(".maps");

/* Address -> slot, domain 0's included. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * VFR_SLOTS);
	__type(key, __be32);
	__type(value, __u32);
} addresses SEC(".maps");

/*
 * Conversations, in the map of the one who opened them: the size of the inner map is the opener's
 * quota. What the LAN opens to a domain lies in the domain's @inbound, so that a flood from there
 * takes nothing from the domain's own.
 */
struct vfr_session_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, struct vfr_session_key);
	__type(value, struct vfr_session);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__array(values, struct vfr_session_table);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__array(values, struct vfr_session_table);
} inbound SEC(".maps");

struct vfr_mapping_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 192);
	__type(key, struct vfr_mapping_key);
	__type(value, struct vfr_mapping);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__array(values, struct vfr_mapping_table);
} mappings SEC(".maps");

/* What may be forgotten, oldest first: place slot * VFR_KINDS + kind. */
struct vfr_closing_queue {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 64);
	__uint(key_size, 0);
	__uint(value_size, sizeof(struct vfr_closing));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS * VFR_KINDS);
	__type(key, __u32);
	__array(values, struct vfr_closing_queue);
} closing SEC(".maps");

struct vfr_fragment_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32);
	__type(key, struct vfr_fragment_key);
	__type(value, struct vfr_fragment);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS + 1); /* the last is for what comes from the LAN, VFR_ROW_LAN */
	__type(key, __u32);
	__array(values, struct vfr_fragment_table);
} fragments SEC(".maps");

/* What the next packet without DF to a remote gets for an identification, by the remote's hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} identifications SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_SPACES * VFR_PORT_SPACE);
	__type(key, __u32);
	__type(value, struct vfr_outside);
} outside SEC(".maps");

/* Pair -> what is said about it. One inner map, replaced whole: a packet meets the old policy or the new one. */
struct vfr_pair_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct vfr_pair_key);
	__type(value, struct vfr_pair);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct vfr_pair_table);
} policy SEC(".maps");

/* What rows of @policy lead to. Numbers that a new policy needs are those that the old one does not have, so
 * both live side by side while one replaces the other. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 22);
	__type(key, struct vfr_ports_key);
	__type(value, __u32);
} port_sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct vfr_remote_key);
	__type(value, __u32);
} remotes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_RULES);
	__type(key, __u32);
	__type(value, struct vfr_rule);
} rules SEC(".maps");

/* MAC -> slot, domain 0's included: whom a raw Ethernet frame is for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * VFR_SLOTS);
	__type(key, struct vfr_mac_key);
	__type(value, __u32);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_ROWS);
	__type(key, __u32);
	__type(value, struct vfr_runtime);
} runtime SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VFR_ROWS);
	__type(key, __u32);
	__type(value, struct vfr_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vfr_dhcp_work);
} dhcp_work SEC(".maps");

/* Drops, for whoever listens. What does not fit is lost, and counted like everything else. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* Set before loading by whoever wants each packet's end written to @trace: tests, `vfr explain`. */
const volatile __u8 tracing = 0;

/* The last packet's end, and behind it what the policy was asked about the packet at hand. */
enum { VFR_TRACE_END, VFR_TRACE_ASKED, VFR_TRACE_ROWS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_TRACE_ROWS);
	__type(key, __u32);
	__type(value, struct vfr_trace);
} trace SEC(".maps");

/* Who captures what, see capture.h; written by the control plane only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_CAPTURES_ALL + 1);
	__type(key, __u32);
	__type(value, struct vfr_capture);
} captures SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__type(value, struct vfr_captured);
} captured SEC(".maps");

/* The ring of each slot's capture, which lives as long as whoever reads it, and is as large as that wants it. */
struct vfr_capture_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VFR_SLOTS);
	__type(key, __u32);
	__array(values, struct vfr_capture_ring);
} capture_rings SEC(".maps");

/* The frame at hand as it came in, until its end is known. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vfr_sight);
} arrival SEC(".maps");

/*
 * NOTE: a map helper of Linux 6.1 takes keys and values from the stack, from a map or from a packet, and not
 * by a pointer that a verified-for-itself (noinline) function was given: such a function copies first.
 */

static __always_inline struct vfr_trace *trace_row(__u32 row)
{
	return bpf_map_lookup_elem(&trace, &row);
}

static __always_inline struct vfr_config *config_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline void count_one(struct vfr_count *count, __u32 bytes)
{
	count->packets++;
	count->bytes += bytes;
}

static __always_inline struct vfr_runtime *runtime_of(__u32 row)
{
	return bpf_map_lookup_elem(&runtime, &row);
}

/* The domain in a slot, or NULL if nobody is. */
static __always_inline struct vfr_domain *domain_in(__u32 slot)
{
	struct vfr_domain *domain = bpf_map_lookup_elem(&domains, &slot);

	return domain && domain->generation ? domain : NULL;
}

static __always_inline struct vfr_outside *outside_port(__u32 space, __be16 port)
{
	__u32 index = space * VFR_PORT_SPACE + bpf_ntohs(port);

	return bpf_map_lookup_elem(&outside, &index);
}

#endif
