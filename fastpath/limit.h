/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * limit: nobody takes more than its share, and what is given back is found again.
 *
 * Every quota belongs to one domain, so one that is used up costs nobody else. Tables that are full
 * are cleared of the dead once a second at the most; if that makes no room, the conversation that has
 * been over longest is forgotten, in the order of @closing. Nothing that lives is ever touched. Of those
 * that the LAN has begun to open, and nobody has shown to be there, the oldest one makes room for the next.
 */
#ifndef VFR_LIMIT_H
#define VFR_LIMIT_H

#include "session.h"

#define E2BIG 7
/* Entries of a queue that are looked at: all, if need be, since many may have died or begun anew. Each is looked at
 * once, so it costs its owner no more than its entering did. */
#define FORGET_TRIES 4096
#define MAPPING_TAKEN (-0x40000000) /* vfr_mapping.open of one that is being deleted */

/* Whether one more event keeps to `per_s` a second, with as many at once as a second allows. The word
 * says when the allowance will be whole again (GCRA). Who loses the race for it twice is let through. */
static __always_inline bool within_rate(__u64 *whole_ns, __u64 now, __u32 per_s)
{
	__u64 old, from;

	if (!per_s)
		return true;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		old = *whole_ns;
		from = old > now ? old : now;
		if (from - now > SECOND_NS)
			return false;
		if (__sync_val_compare_and_swap(whole_ns, old, from + SECOND_NS / per_s) == old)
			return true;
	}
	return true;
}

/* Whether a rule may let one more conversation begin now. */
static __always_inline bool within_limit(__u32 number, __u64 now)
{
	struct vfr_rule *rule = rule_number(number);

	return !rule || within_rate(&rule->until_ns, now, rule->per_s);
}

/* Tells of a packet, at a rate per row: a flood of them must not drown everybody else's. */
__noinline int tell(__u32 per_s, __u64 now, struct vfr_event *event)
{
	struct vfr_runtime *r;

	if (!event)
		return 0;
	r = runtime_of(event->row);
	if (!r)
		return 0;
	if (!per_s || !within_rate(&r->events_until_ns, now, per_s)) {
		__sync_fetch_and_add(&r->untold, 1);
		return 0;
	}
	event->untold = __sync_lock_test_and_set(&r->untold, 0); /* an exchange: another CPU may be telling too */
	if (bpf_ringbuf_output(&events, event, sizeof(*event), 0))
		__sync_fetch_and_add(&r->untold, event->untold + 1);
	return 0;
}

/* What one pass over a table counts, and the time by which it judges. */
struct sweeping {
	__u64 now;
	__s32 half_open;
};

static long sweep_session(void *map, const void *key, struct vfr_session *s, struct sweeping *sweeping)
{
	if (s->expires_ns <= sweeping->now)
		bpf_map_delete_elem(map, key);
	else if (is_half_open(s->tcp_state))
		sweeping->half_open++;
	return 0;
}

static long sweep_mapping(void *map, const void *key, struct vfr_mapping *m, struct sweeping *sweeping)
{
	if (m->expires_ns <= sweeping->now)
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_fragment(void *map, const void *key, struct vfr_fragment *f, struct sweeping *sweeping)
{
	if (f->expires_ns <= sweeping->now)
		bpf_map_delete_elem(map, key);
	return 0;
}

/* Deletes what is dead in a row's tables, looking at each entry's own time, and counts the half-open
 * anew: those that died of silence have left nobody to count them. */
__noinline int sweep(__u32 row, __u64 now)
{
	void *own = bpf_map_lookup_elem(&sessions, &row);
	void *from_lan = bpf_map_lookup_elem(&inbound, &row);
	void *ports = bpf_map_lookup_elem(&mappings, &row);
	void *pieces = bpf_map_lookup_elem(&fragments, &row);
	struct vfr_runtime *r = runtime_of(row);
	struct sweeping sweeping = { .now = now };

	if (!r)
		return 0;
	if (own) {
		bpf_for_each_map_elem(own, sweep_session, &sweeping, 0);
		r->half_open = sweeping.half_open;
	}
	sweeping.half_open = 0;
	if (from_lan) {
		bpf_for_each_map_elem(from_lan, sweep_session, &sweeping, 0);
		r->half_open_inbound = sweeping.half_open;
	}
	if (ports)
		bpf_for_each_map_elem(ports, sweep_mapping, &sweeping, 0);
	if (pieces)
		bpf_for_each_map_elem(pieces, sweep_fragment, &sweeping, 0);
	return 0;
}

/* Sweeps if nobody has within the last second: whoever finds a table full would, and often. */
static __always_inline void sweep_sometimes(__u32 row, __u64 now)
{
	struct vfr_runtime *r = runtime_of(row);
	__u64 swept;

	if (!r)
		return;
	swept = r->swept_ns;
	if (now - swept < SECOND_NS)
		return;
	if (__sync_val_compare_and_swap(&r->swept_ns, swept, now) == swept)
		sweep(row, now);
}

static __always_inline void *closing_queue(__u32 slot, __u32 kind)
{
	__u32 place = slot * VFR_KINDS + kind;

	return bpf_map_lookup_elem(&closing, &place);
}

/* Gives a mapping's outside port back, and deletes the mapping, unless a session uses it again. */
static __always_inline bool take_away_mapping(__u32 slot, struct vfr_mapping_key *key, __be16 port)
{
	void *table = bpf_map_lookup_elem(&mappings, &slot);
	struct vfr_mapping *m = table ? bpf_map_lookup_elem(table, key) : NULL;
	__u64 *entry = (__u64 *)outside_port(space_of(key->protocol), port), held;

	if (!m || !entry || m->outside_port != port)
		return false;
	held = *entry;
	if (__sync_val_compare_and_swap(&m->open, 0, MAPPING_TAKEN) != 0)
		return false;
	bpf_map_delete_elem(table, key);
	__sync_val_compare_and_swap(entry, held, 0);
	return true;
}

struct forgetting {
	__u64 now;
	__u32 slot, kind;
	bool wants_port;
	bool done;
	__be16 port;                 /* the outside port that became free, if any */
};

/* Whether it may be forgotten, for all that was said since it entered the queue of its kind. */
static __always_inline bool may_be_forgotten(const struct vfr_session *s, __u32 kind)
{
	return kind == VFR_KIND_ENTERING ? is_half_open(s->tcp_state) : is_over(s->tcp_state);
}

static __always_inline void *table_of(__u32 slot, __u32 kind)
{
	return kind == VFR_KIND_INBOUND || kind == VFR_KIND_ENTERING ? bpf_map_lookup_elem(&inbound, &slot)
								     : bpf_map_lookup_elem(&sessions, &slot);
}

static long forget_one(__u32 i, struct forgetting *f)
{
	void *queue = closing_queue(f->slot, f->kind), *table;
	struct vfr_closing oldest = {};
	struct vfr_mapping_key mapping;
	struct vfr_session *s;
	bool dead;

	if (!queue || bpf_map_pop_elem(queue, &oldest))
		return 1;
	table = table_of(f->slot, f->kind);
	s = table ? bpf_map_lookup_elem(table, &oldest.key) : NULL;
	if (!s || !may_be_forgotten(s, f->kind) || s->outside_port != oldest.outside_port)
		return 0;
	dead = s->expires_ns <= f->now;
	bpf_map_delete_elem(table, &oldest.key);
	f->done = true;
	/* Its mapping is another conversation's, or as dead as it is. */
	if (dead)
		return !f->wants_port;
	mapping = (struct vfr_mapping_key){ .inside_port = oldest.key.inside_port, .protocol = oldest.key.protocol };
	if (f->kind == VFR_KIND_LAN && take_away_mapping(f->slot, &mapping, oldest.outside_port))
		f->port = oldest.outside_port;
	return !f->wants_port || f->port;
}

/* Forgets the oldest conversation of a kind. True if there was one. */
__noinline int forget_oldest(__u32 slot, __u32 kind, __u64 now)
{
	struct forgetting f = { .now = now, .slot = slot, .kind = kind };

	bpf_loop(FORGET_TRIES, forget_one, &f, 0);
	return f.done;
}

/* The same until an outside port has become free by it: the port, or 0. */
__noinline int free_oldest_port(__u32 slot, __u64 now)
{
	struct forgetting f = { .now = now, .slot = slot, .kind = VFR_KIND_LAN, .wants_port = true };

	bpf_loop(FORGET_TRIES, forget_one, &f, 0);
	return f.port;
}

/* Whose quotas a conversation counts against: the domain that opened it, or that the LAN opened it to. */
static __always_inline __u32 owner_of(const struct vfr_pkt *p)
{
	return p->inbound ? p->target : p->opener;
}

/* Whether one more conversation of a domain's, or of the LAN's with it, may begin. */
__noinline enum vfr_verdict admit(__u32 slot, __u8 protocol, __u32 from_lan, __u64 now)
{
	struct vfr_domain *owner = domain_in(slot);
	struct vfr_runtime *r = runtime_of(slot);
	__s32 *half_open;
	__u32 per_s;

	if (!r || !owner)
		return VFR_DROP_NOT_READY;
	per_s = from_lan && owner->new_in_per_s ? owner->new_in_per_s : owner->new_per_s;
	if (!within_rate(from_lan ? &r->entered_until_ns : &r->opened_until_ns, now, per_s))
		return VFR_DROP_TOO_FAST;
	half_open = from_lan ? &r->half_open_inbound : &r->half_open;
	if (protocol != IPPROTO_TCP || *half_open < (__s32)owner->half_open)
		return VFR_CONTINUE;
	sweep_sometimes(slot, now);
	if (from_lan && *half_open >= (__s32)owner->half_open && forget_oldest(slot, VFR_KIND_ENTERING, now))
		__sync_fetch_and_add(half_open, -1);
	return *half_open < (__s32)owner->half_open ? VFR_CONTINUE : VFR_DROP_HALF_OPEN_FULL;
}

#endif
