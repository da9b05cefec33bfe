/* SPDX-License-Identifier: GPL-2.0-only */
/* kernel: what native.c, maps.c and skb.c give to fuzzers, and through ctypes to tests. See native.c. */
#ifndef NATIVE_KERNEL_H
#define NATIVE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define NATIVE_POISON(at, size) __asan_poison_memory_region(at, size)
#define NATIVE_UNPOISON(at, size) __asan_unpoison_memory_region(at, size)
#else
#define NATIVE_POISON(at, size) ((void)(at), (void)(size))
#define NATIVE_UNPOISON(at, size) ((void)(at), (void)(size))
#endif

#define NATIVE_FRAME_MAX 65550 /* 14 bytes and the longest IP packet, and a little more */

/* Stops with a message: the harness, or the fastpath's use of a helper, is wrong. */
#define native_check(condition, ...) \
	((condition) ? (void)0 : native_stop(__FILE__, __LINE__, #condition, __VA_ARGS__))
void native_stop(const char *file, int line, const char *condition, const char *format, ...)
	__attribute__((noreturn, format(printf, 4, 5)));

/* A map as the kernel sees it. Programs hold a `void *` to their own declaration of it, or to this;
 * both begin with a pointer to this, so one load tells which map is meant. */
struct native_map {
	struct native_map *self;
	const char *name;
	__u32 id, type, key_size, value_size, max_entries, flags;
	__u32 count;                 /* elements in a hash, a trie, a queue or a ring */
	__u32 stride;                /* of an array: bytes from one value to the next, redzone included */
	__u32 buckets, head;
	__u32 walking;               /* for_each calls that go on: the dead are freed after them */
	__u8 *values;
	struct native_elem **table;
	__u32 *lengths;              /* of a trie: how many elements have a prefix of so many bits */
	struct native_elem *graves;
	struct native_map **inner;
};

/* One element of a hash or a trie. Key and value are allocations of their own, so that running past
 * either, or using a deleted one, is seen. */
struct native_elem {
	struct native_elem *next;
	__u8 *key, *value;
	bool dead;
};

/* The maps of the object, as maps.inc declares them. */
void native_declare(void *declaration, const char *name, __u32 type, __u32 key_size, __u32 value_size,
		    __u32 max_entries, __u32 flags);
struct native_map *native_map_of(void *map);
struct native_map *native_map_named(const char *name);
struct native_map *native_create(__u32 type, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags);
/* Deletes all elements of a hash or a trie. */
void native_empty(struct native_map *map);
/* Walks all elements: `at` begins as NULL; NULL is the end. Nothing may be deleted meanwhile. */
struct native_elem *native_next(const struct native_map *map, const struct native_elem *at);

/* bpf(2) for maps, on the emulated ones; `fd` becomes the descriptor of what the command opens. */
long native_bpf(int command, union bpf_attr *attr, int fd);
/* Writes what native_bpf changes to a file, for native_replay; NULL ends it. A mark ends a segment. */
void native_record(const char *path);
void native_record_mark(void);
/* Does again what was recorded, up to the next mark. Returns where the next segment begins. A segment may
 * speak of declared maps and of those it made itself. */
const __u8 *native_replay(const __u8 *log, const __u8 *end);

/* A frame as a driver would hand it over. */
struct native_frame {
	const __u8 *data;
	__u32 length;
	__u32 linear;                /* bytes in the linear part, the rest lies in pages; 0: all of them */
	__u32 ifindex;
	__u32 mark;
	__u32 gso_size, gso_segs;    /* 0 if it is no GSO frame */
	__u16 csum_start;            /* where a checksum is still to be completed, from the frame's start */
	__u16 csum_offset;
	__u8 partial;                /* CHECKSUM_PARTIAL: the two above mean something */
	__u8 vlan;                   /* a tag was taken off it */
	__u8 fail_at;                /* the helper call, counted from 1, that finds no memory; 0: none */
	__u8 hook;                   /* enum native_hook */
};

enum native_hook { NATIVE_VIF, NATIVE_UPLINK, NATIVE_SORTER };

enum native_redirect { NATIVE_STAY, NATIVE_REDIRECT, NATIVE_PEER, NATIVE_NEIGH };

struct native_result {
	int action;                  /* TC_ACT_* */
	__u32 verdict, row, target;  /* as the fastpath's trace says */
	__u32 redirect;              /* enum native_redirect: what the last helper of the kind was told */
	__u32 redirect_ifindex, redirect_flags;
	__u32 mark, pkt_type;
	__u32 length;
	__u8 *data;                  /* the frame as it was left; good until the next run */
};

void native_init(void);
void native_run(const struct native_frame *frame, struct native_result *result);
/* What the control plane runs to clear a row of what has expired. */
void native_sweep(__u32 row);
void native_clock(__u64 ns);
/* What bpf_get_prandom_u32 says: a sequence begun by `seed`, or, if `fixed`, always `seed`. */
void native_random(__u32 seed, bool fixed);
/* Whether the host has a socket on a TCP or UDP port that takes packets from anybody; none at all. */
void native_host_listens(__u8 protocol, __u16 port, bool listens);
void native_host_is_silent(void);
bool native_host_has(__u8 protocol, __u16 port);
/* Whether the kernel's own sk_buff can be read (Linux 6.2 and later); else a witness tells of offloads. */
void native_kernel_context(bool readable);
/* Sets one of the fastpath's `const volatile` settings, as a loader would before loading. */
void native_set(const volatile void *setting, size_t size, __u64 value);
/* One line a map: name, type, sizes, entries, flags. For a test that compares. */
int native_map_count(void);
const struct native_map *native_map_number(int number);

/* Between native.c and skb.c. */
void skb_begin(const struct native_frame *frame, const __u8 host_mac[6]);
struct __sk_buff *skb_context(void);
bool skb_kernel_view(void **head, void **data, __u16 *csum_start, __u16 *csum_offset);
void skb_end(struct native_result *result);
bool native_no_memory(void);

#endif
