// SPDX-License-Identifier: GPL-2.0-only
/*
 * maps: array, per-CPU array (of one CPU), hash, LPM trie, queue, ring buffer and array of maps, with the
 * kernel's return values, and with redzones: each value of an array is followed by poison, and each key
 * and value of a hash is an allocation of its own that dies with its element. An update of an element
 * that exists makes a new one, as the kernel's hash does, so whoever holds the old value holds nothing.
 *
 * native_bpf does what bpf(2) does, so that vfr/kernel/fastpath.py runs on these maps unchanged. A
 * recording of its writes, replayed, is how fuzzers get the world that the control plane made.
 *
 * A trie is a hash too, of prefixes; a look-up tries the lengths that there are, the longest first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <bpf/bpf_helpers.h>
#include "kernel.h"

#define MAPS_MAX (1 << 14)
#define FDS_MAX (1 << 16)
#define REDZONE 16
#define BUCKETS_MAX 256
#define LOOPS_MAX (1 << 23)
#define KEY_MAX 64
#define ENOTSUPP 524 /* the kernel's own, for batches that a map does not do */

static struct native_map *maps[MAPS_MAX]; /* by id modulo; the declared ones have ids from 1 on */
static __u32 last_id;
static __u32 declared;
static __u32 fd_ids[FDS_MAX];
static FILE *recording;
static __u32 recorded_from; /* maps made before are private to whoever made them */

static __u32 round_up(__u32 size)
{
	return (size + 7) & ~7U;
}

static void *allocate(size_t count, size_t size)
{
	void *fresh = calloc(count ? count : 1, size);

	native_check(fresh, "out of memory");
	return fresh;
}

static bool is_array(const struct native_map *map)
{
	return map->type == BPF_MAP_TYPE_ARRAY || map->type == BPF_MAP_TYPE_PERCPU_ARRAY;
}

static bool has_elements(const struct native_map *map)
{
	return map->type == BPF_MAP_TYPE_HASH || map->type == BPF_MAP_TYPE_LPM_TRIE;
}

static bool is_trie(const struct native_map *map)
{
	return map->type == BPF_MAP_TYPE_LPM_TRIE;
}

/* Bits of the longest prefix that a trie can have; a key begins with how many bits its own has. */
static __u32 longest(const struct native_map *map)
{
	return (map->key_size - sizeof(__u32)) * 8;
}

static __u32 bits_of(const void *key)
{
	return *(const __u32 *)key;
}

static void make_values(struct native_map *map)
{
	map->stride = round_up(map->value_size) + REDZONE;
	map->values = allocate(map->max_entries, map->stride);
	for (__u32 i = 0; i < map->max_entries; i++)
		NATIVE_POISON(map->values + (size_t)i * map->stride + map->value_size, map->stride - map->value_size);
}

static struct native_map *make_map(const char *name, __u32 type, __u32 key_size, __u32 value_size,
				   __u32 max_entries, __u32 flags)
{
	struct native_map *map = allocate(1, sizeof(*map));

	do
		last_id++;
	while (!last_id || maps[last_id % MAPS_MAX]);
	*map = (struct native_map){
		.self = map, .name = name, .id = last_id, .type = type, .key_size = key_size,
		.value_size = value_size, .max_entries = max_entries, .flags = flags,
	};
	if (is_array(map) || type == BPF_MAP_TYPE_QUEUE)
		make_values(map);
	else if (type == BPF_MAP_TYPE_ARRAY_OF_MAPS)
		map->inner = allocate(max_entries, sizeof(*map->inner));
	else if (has_elements(map)) {
		native_check(key_size <= KEY_MAX, "make room for a key of %u bytes", key_size);
		map->buckets = max_entries < BUCKETS_MAX ? max_entries : BUCKETS_MAX;
		map->table = allocate(map->buckets, sizeof(*map->table));
		map->lengths = allocate(is_trie(map) ? longest(map) + 1 : 0, sizeof(*map->lengths));
	} else
		native_check(type == BPF_MAP_TYPE_RINGBUF, "map %s: type %u is not emulated", name, type);
	maps[last_id % MAPS_MAX] = map;
	return map;
}

void native_declare(void *declaration, const char *name, __u32 type, __u32 key_size, __u32 value_size,
		    __u32 max_entries, __u32 flags)
{
	*(struct native_map **)declaration = make_map(name, type, key_size, value_size, max_entries, flags);
	declared++;
}

struct native_map *native_create(__u32 type, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags)
{
	return make_map("inner", type, key_size, value_size, max_entries, flags);
}

int native_map_count(void)
{
	return declared;
}

const struct native_map *native_map_number(int number)
{
	return maps[number + 1];
}

struct native_map *native_map_named(const char *name)
{
	for (__u32 i = 1; i <= declared; i++)
		if (!strcmp(maps[i]->name, name))
			return maps[i];
	return NULL;
}

struct native_map *native_map_of(void *map)
{
	struct native_map *found = map ? *(struct native_map **)map : NULL;

	native_check(found && found->self == found, "a map that was not declared: is vfr/_abi.py up to date?");
	return found;
}

/* Elements of hashes and tries */

static void free_elem(struct native_elem *elem)
{
	free(elem->key);
	free(elem);
}

/* The value goes at once, so that its use is seen; key and link only when nobody walks any more. */
static void bury(struct native_map *map, struct native_elem *elem)
{
	free(elem->value);
	elem->value = NULL;
	elem->dead = true;
	map->count--;
	if (is_trie(map))
		map->lengths[bits_of(elem->key)]--;
	if (!map->walking)
		free_elem(elem);
}

void native_empty(struct native_map *map)
{
	struct native_elem *elem, *next;

	for (__u32 i = 0; i < map->buckets; i++) {
		for (elem = map->table[i]; elem; elem = next) {
			next = elem->next;
			bury(map, elem);
		}
		map->table[i] = NULL;
	}
}

static void drop_map(struct native_map *map)
{
	if (!map)
		return;
	native_empty(map);
	if (map->values)
		NATIVE_UNPOISON(map->values, (size_t)map->max_entries * map->stride);
	maps[map->id % MAPS_MAX] = NULL;
	free(map->values);
	free(map->table);
	free(map->lengths);
	free(map->inner);
	free(map);
}

static __u32 hash_bytes(__u32 hash, const __u8 *at, __u32 length)
{
	for (__u32 i = 0; i < length; i++)
		hash = (hash ^ at[i]) * 16777619;
	return hash;
}

/* Of a trie's key, what lies behind the prefix does not count. */
static struct native_elem **bucket_of(struct native_map *map, const __u8 *key)
{
	__u32 bits = is_trie(map) ? bits_of(key) : 0, hash = 2166136261 + bits;
	__u8 rest;

	if (!is_trie(map))
		return &map->table[hash_bytes(hash, key, map->key_size) % map->buckets];
	hash = hash_bytes(hash, key + sizeof(bits), bits / 8);
	rest = bits % 8 ? key[sizeof(bits) + bits / 8] >> (8 - bits % 8) : 0;
	return &map->table[hash_bytes(hash, &rest, 1) % map->buckets];
}

static bool prefix_covers(const __u8 *prefix, const __u8 *key)
{
	__u32 bits = bits_of(prefix), whole = bits / 8, rest = bits % 8;

	if (bits > bits_of(key) || memcmp(prefix + 4, key + 4, whole))
		return false;
	return !rest || !((prefix[4 + whole] ^ key[4 + whole]) >> (8 - rest));
}

static bool same_key(const struct native_map *map, const void *one, const void *other)
{
	if (is_trie(map))
		return bits_of(one) == bits_of(other) && prefix_covers(one, other);
	return !memcmp(one, other, map->key_size);
}

/* The link that leads to the element of exactly this key, or the link at the end. */
static struct native_elem **link_of(struct native_map *map, const void *key)
{
	struct native_elem **link = bucket_of(map, key);

	while (*link && !same_key(map, (*link)->key, key))
		link = &(*link)->next;
	return link;
}

static void *longest_prefix(struct native_map *map, const void *key)
{
	__u32 bits = bits_of(key);
	__u8 prefix[KEY_MAX];
	struct native_elem *elem;

	if (bits > longest(map))
		return NULL;
	memcpy(prefix, key, map->key_size);
	for (bits++; bits-- > 0;) {
		memcpy(prefix, &bits, sizeof(bits));
		elem = map->lengths[bits] ? *link_of(map, prefix) : NULL;
		if (elem)
			return elem->value;
	}
	return NULL;
}

struct native_elem *native_next(const struct native_map *map, const struct native_elem *at)
{
	__u32 bucket = 0;

	if (at && at->next)
		return at->next;
	if (at)
		bucket = (__u32)(bucket_of((struct native_map *)map, at->key) - map->table) + 1;
	while (bucket < map->buckets && !map->table[bucket])
		bucket++;
	return bucket < map->buckets ? map->table[bucket] : NULL;
}

static struct native_elem *new_elem(const struct native_map *map, const void *key, const void *value)
{
	struct native_elem *elem = allocate(1, sizeof(*elem));

	elem->key = allocate(1, map->key_size);
	elem->value = allocate(1, map->value_size);
	memcpy(elem->key, key, map->key_size);
	memcpy(elem->value, value, map->value_size);
	return elem;
}

static long update_elem(struct native_map *map, const void *key, const void *value, __u64 flags)
{
	struct native_elem **link, *old, *fresh;

	if (flags > BPF_EXIST || (is_trie(map) && bits_of(key) > longest(map)))
		return -EINVAL;
	link = link_of(map, key);
	old = *link;
	if (flags == BPF_NOEXIST && old)
		return -EEXIST;
	if (flags == BPF_EXIST && !old)
		return -ENOENT;
	if (!old && map->count >= map->max_entries)
		return is_trie(map) ? -ENOSPC : -E2BIG;
	fresh = new_elem(map, key, value);
	fresh->next = old ? old->next : *link;
	*link = fresh;
	map->count++;
	if (is_trie(map))
		map->lengths[bits_of(key)]++;
	if (old)
		bury(map, old);
	return 0;
}

static long delete_elem(struct native_map *map, const void *key)
{
	struct native_elem **link, *elem;

	if (is_trie(map) && bits_of(key) > longest(map))
		return -EINVAL;
	link = link_of(map, key);
	elem = *link;
	if (!elem)
		return -ENOENT;
	*link = elem->next;
	bury(map, elem);
	return 0;
}

/* Helpers */

static __u8 *value_at(const struct native_map *map, __u32 index)
{
	return index < map->max_entries ? map->values + (size_t)index * map->stride : NULL;
}

void *bpf_map_lookup_elem(void *declaration, const void *key)
{
	struct native_map *map = native_map_of(declaration);
	struct native_elem *elem;
	__u32 index;

	if (is_trie(map))
		return longest_prefix(map, key);
	if (has_elements(map)) {
		elem = *link_of(map, key);
		return elem ? elem->value : NULL;
	}
	memcpy(&index, key, sizeof(index));
	if (map->type == BPF_MAP_TYPE_ARRAY_OF_MAPS)
		return index < map->max_entries ? map->inner[index] : NULL;
	native_check(is_array(map), "look-up in %s", map->name);
	return value_at(map, index);
}

long bpf_map_update_elem(void *declaration, const void *key, const void *value, __u64 flags)
{
	struct native_map *map = native_map_of(declaration);
	__u8 *at;

	if (has_elements(map))
		return native_no_memory() ? -ENOMEM : update_elem(map, key, value, flags);
	native_check(is_array(map), "update of %s", map->name);
	at = value_at(map, *(const __u32 *)key);
	if (!at || flags == BPF_NOEXIST)
		return at ? -EEXIST : -E2BIG;
	memcpy(at, value, map->value_size);
	return 0;
}

long bpf_map_delete_elem(void *declaration, const void *key)
{
	struct native_map *map = native_map_of(declaration);

	return has_elements(map) ? delete_elem(map, key) : -EINVAL;
}

long bpf_map_push_elem(void *declaration, const void *value, __u64 flags)
{
	struct native_map *queue = native_map_of(declaration);

	native_check(queue->type == BPF_MAP_TYPE_QUEUE, "push to %s", queue->name);
	if (flags & ~(__u64)BPF_EXIST)
		return -EINVAL;
	if (queue->count == queue->max_entries) {
		if (flags != BPF_EXIST)
			return -E2BIG;
		queue->head = (queue->head + 1) % queue->max_entries; /* the oldest makes room */
		queue->count--;
	}
	memcpy(value_at(queue, (queue->head + queue->count) % queue->max_entries), value, queue->value_size);
	queue->count++;
	return 0;
}

long bpf_map_peek_elem(void *declaration, void *value)
{
	struct native_map *queue = native_map_of(declaration);

	native_check(queue->type == BPF_MAP_TYPE_QUEUE, "pop from %s", queue->name);
	if (!queue->count) {
		memset(value, 0, queue->value_size);
		return -ENOENT;
	}
	memcpy(value, value_at(queue, queue->head), queue->value_size);
	return 0;
}

long bpf_map_pop_elem(void *declaration, void *value)
{
	struct native_map *queue = native_map_of(declaration);
	long err = bpf_map_peek_elem(declaration, value);

	if (!err) {
		queue->head = (queue->head + 1) % queue->max_entries;
		queue->count--;
	}
	return err;
}

typedef long (*each_callback)(void *map, const void *key, void *value, void *context);
typedef long (*loop_callback)(__u32 i, void *context);

static long each_in_array(struct native_map *map, each_callback callback, void *context)
{
	for (__u32 i = 0; i < map->max_entries; i++)
		if (callback(map, &i, value_at(map, i), context))
			return i + 1;
	return map->max_entries;
}

/* The callback may delete any element. What it deletes is kept as a link until the walk is over. */
static long each_in_hash(struct native_map *map, each_callback callback, void *context)
{
	struct native_elem **all = allocate(map->count, sizeof(*all)), *elem = NULL;
	__u32 count = 0, done = 0;
	long result = 0;

	while ((elem = native_next(map, elem)))
		all[count++] = elem;
	map->walking++;
	for (; done < count && !result; done++)
		result = all[done]->dead ? 0 : callback(map, all[done]->key, all[done]->value, context);
	map->walking--;
	for (__u32 i = 0; i < count && !map->walking; i++)
		if (all[i]->dead)
			free_elem(all[i]);
	free(all);
	return done;
}

long bpf_for_each_map_elem(void *declaration, void *callback, void *context, __u64 flags)
{
	struct native_map *map = native_map_of(declaration);

	if (flags)
		return -EINVAL;
	native_check(is_array(map) || map->type == BPF_MAP_TYPE_HASH, "walk over %s", map->name);
	native_check(!map->walking, "a walk within a walk over %s", map->name);
	return is_array(map) ? each_in_array(map, (each_callback)callback, context)
			     : each_in_hash(map, (each_callback)callback, context);
}

long bpf_loop(__u32 count, void *callback, void *context, __u64 flags)
{
	if (flags || count > LOOPS_MAX)
		return flags ? -EINVAL : -E2BIG;
	for (__u32 i = 0; i < count; i++)
		if (((loop_callback)callback)(i, context))
			return i + 1;
	return count;
}

/* A ring keeps count of what was put in and no more; `head` is what a reader has not taken. */
struct ring_record {
	struct native_map *ring;
	__u64 size;
	__u8 data[];
};

void *bpf_ringbuf_reserve(void *declaration, __u64 size, __u64 flags)
{
	struct native_map *ring = native_map_of(declaration);
	struct ring_record *record;

	if (flags || native_no_memory() || ring->count + round_up((__u32)size) + 8 > ring->max_entries)
		return NULL;
	record = allocate(1, sizeof(*record) + size);
	record->ring = ring;
	record->size = size;
	return record->data;
}

void bpf_ringbuf_discard(void *data, __u64 flags)
{
	free((__u8 *)data - offsetof(struct ring_record, data));
}

void bpf_ringbuf_submit(void *data, __u64 flags)
{
	struct ring_record *record = (void *)((__u8 *)data - offsetof(struct ring_record, data));

	record->ring->count += round_up((__u32)record->size) + 8;
	bpf_ringbuf_discard(data, flags);
}

long bpf_ringbuf_output(void *declaration, void *data, __u64 size, __u64 flags)
{
	void *room = bpf_ringbuf_reserve(declaration, size, 0);

	if (!room)
		return -EAGAIN;
	memcpy(room, data, size);
	bpf_ringbuf_submit(room, flags);
	return 0;
}

/* Recording and replay */

enum { LOG_CREATE = 'c', LOG_UPDATE = 'u', LOG_DELETE = 'd', LOG_MARK = '-' };

struct log_entry {
	__u32 what, map;
	__u32 type, key_size, value_size, max_entries, flags; /* of a map that is made */
	__u32 inner;                 /* the map that an update puts in, 0 for a value */
};

void native_record(const char *path)
{
	if (recording)
		native_check(!fclose(recording), "the recording was not written");
	recording = path ? fopen(path, "wb") : NULL;
	native_check(recording || !path, "can't write %s", path);
	recorded_from = last_id + 1;
}

static void note(struct log_entry entry, const struct native_map *map, const void *key, const void *value)
{
	if (!recording || (map && map->id > declared && map->id < recorded_from))
		return;
	entry.map = map ? map->id : 0;
	native_check(fwrite(&entry, sizeof(entry), 1, recording) == 1, "the recording was not written");
	if (key)
		fwrite(key, 1, map->key_size, recording);
	if (value)
		fwrite(value, 1, map->value_size, recording);
}

void native_record_mark(void)
{
	note((struct log_entry){ .what = LOG_MARK }, NULL, NULL, NULL);
}

static long put_inner(struct native_map *outer, __u32 index, struct native_map *inner)
{
	if (index >= outer->max_entries)
		return -E2BIG;
	drop_map(outer->inner[index]);
	outer->inner[index] = inner;
	return 0;
}

static struct native_map *with_id(__u32 id)
{
	struct native_map *map = maps[id % MAPS_MAX];

	return map && map->id == id ? map : NULL;
}

/* The log's number of a map to the map it is in this life. */
static struct native_map *replayed(__u32 *numbers, struct native_map **made, __u32 count, __u32 id)
{
	for (__u32 i = count; i-- > 0;)
		if (numbers[i] == id)
			return made[i];
	return with_id(id);
}

const __u8 *native_replay(const __u8 *at, const __u8 *end)
{
	static __u32 numbers[MAPS_MAX];
	static struct native_map *made[MAPS_MAX];
	struct native_map *map;
	struct log_entry entry;
	__u32 count = 0;

	while (at < end) {
		memcpy(&entry, at, sizeof(entry));
		at += sizeof(entry);
		if (entry.what == LOG_MARK)
			return at;
		if (entry.what == LOG_CREATE) {
			native_check(count < MAPS_MAX, "a segment of the log makes too many maps");
			numbers[count] = entry.map;
			made[count++] = native_create(entry.type, entry.key_size, entry.value_size,
						      entry.max_entries, entry.flags);
			continue;
		}
		map = replayed(numbers, made, count, entry.map);
		native_check(map, "the log speaks of map %u, which was never made", entry.map);
		if (entry.inner)
			put_inner(map, *(const __u32 *)at, replayed(numbers, made, count, entry.inner));
		else if (entry.what == LOG_UPDATE)
			bpf_map_update_elem(map, at, at + map->key_size, BPF_ANY);
		else
			delete_elem(map, at);
		at += map->key_size + (entry.what == LOG_UPDATE && !entry.inner ? map->value_size : 0);
	}
	return at;
}

/* bpf(2) */

static struct native_map *with_fd(__u32 fd)
{
	return fd < FDS_MAX && fd_ids[fd] ? with_id(fd_ids[fd]) : NULL;
}

static long open_map(const struct native_map *map, int fd)
{
	if (!map || fd < 0 || fd >= FDS_MAX)
		return map ? -EMFILE : -ENOENT;
	fd_ids[fd] = map->id;
	return fd;
}

static long sys_create(const union bpf_attr *attr, int fd)
{
	struct native_map *map = native_create(attr->map_type, attr->key_size, attr->value_size,
					       attr->max_entries, attr->map_flags);

	note((struct log_entry){ LOG_CREATE, 0, map->type, map->key_size, map->value_size, map->max_entries,
				 map->flags, 0 }, map, NULL, NULL);
	return open_map(map, fd);
}

/* A pinned map goes by the last part of its path. */
static long sys_open(const union bpf_attr *attr, int fd)
{
	const char *path = (const char *)attr->pathname, *name = strrchr(path, '/');

	return open_map(native_map_named(name ? name + 1 : path), fd);
}

static long sys_lookup(struct native_map *map, const void *key, void *value)
{
	void *found;

	if (map->type == BPF_MAP_TYPE_QUEUE)
		return bpf_map_peek_elem(map, value);
	found = bpf_map_lookup_elem(map, key);
	if (!found)
		return -ENOENT;
	memcpy(value, map->inner ? (void *)&((struct native_map *)found)->id : found, map->value_size);
	return 0;
}

static long sys_update(struct native_map *map, const void *key, const void *value, __u64 flags)
{
	struct native_map *inner = map->inner ? with_fd(*(const __u32 *)value) : NULL;
	long err;

	if (map->inner && !inner)
		return -EBADF;
	if (map->inner)
		err = put_inner(map, *(const __u32 *)key, inner);
	else if (map->type == BPF_MAP_TYPE_QUEUE)
		err = bpf_map_push_elem(map, value, flags);
	else
		err = has_elements(map) ? update_elem(map, key, value, flags)
					: bpf_map_update_elem(map, key, value, flags);
	if (!err)
		note((struct log_entry){ .what = LOG_UPDATE, .inner = inner ? inner->id : 0 }, map, key,
		     inner ? NULL : value);
	return err;
}

static long sys_delete(struct native_map *map, const void *key)
{
	long err;

	if (map->inner)
		err = *(const __u32 *)key < map->max_entries && map->inner[*(const __u32 *)key]
			      ? put_inner(map, *(const __u32 *)key, NULL) : -ENOENT;
	else
		err = bpf_map_delete_elem(map, key);
	native_check(!recording || err || !map->inner, "a recording can't take inner maps away");
	if (!err)
		note((struct log_entry){ .what = LOG_DELETE }, map, key, NULL);
	return err;
}

static long next_index(const struct native_map *map, const __u32 *index, __u32 *next)
{
	*next = index && *index < map->max_entries ? *index + 1 : 0;
	return *next < map->max_entries ? 0 : -ENOENT;
}

static long sys_next_key(struct native_map *map, const void *key, void *next)
{
	const struct native_elem *elem = key && has_elements(map) ? *link_of(map, key) : NULL;

	if (is_array(map) || map->inner)
		return next_index(map, key, next);
	if (!has_elements(map))
		return -EOPNOTSUPP;
	elem = native_next(map, elem);
	if (!elem)
		return -ENOENT;
	memcpy(next, elem->key, map->key_size);
	return 0;
}

/* A hash's batches are whole buckets, and the cursor is the next one's number. -ENOENT says that it was the last. */
static long sys_lookup_batch_of_hash(struct native_map *map, union bpf_attr *attr)
{
	__u32 bucket = attr->batch.in_batch ? *(const __u32 *)attr->batch.in_batch : 0, count = 0, room;
	__u8 *keys = (__u8 *)attr->batch.keys, *values = (__u8 *)attr->batch.values;
	const struct native_elem *elem;

	for (; bucket < map->buckets; bucket++) {
		room = attr->batch.count - count;
		for (elem = map->table[bucket]; elem && room; elem = elem->next)
			room--;
		if (elem)
			break;
		for (elem = map->table[bucket]; elem; elem = elem->next, count++) {
			memcpy(keys + (size_t)count * map->key_size, elem->key, map->key_size);
			memcpy(values + (size_t)count * map->value_size, elem->value, map->value_size);
		}
	}
	if (bucket < map->buckets && !count)
		return -ENOSPC;
	attr->batch.count = count;
	*(__u32 *)attr->batch.out_batch = bucket;
	return bucket < map->buckets ? 0 : -ENOENT;
}

/* Of all other maps the cursor is the last key seen. Places of an array of maps that are empty are left out. */
static long sys_lookup_batch(struct native_map *map, union bpf_attr *attr)
{
	__u8 *keys = (__u8 *)attr->batch.keys, *values = (__u8 *)attr->batch.values, key[KEY_MAX];
	const void *before = (const void *)attr->batch.in_batch;
	__u32 count = 0;
	long err = 0;

	if (!is_array(map) && !map->inner && !has_elements(map))
		return -ENOTSUPP;
	while (count < attr->batch.count && !(err = sys_next_key(map, before, key))) {
		if (!sys_lookup(map, key, values + (size_t)count * map->value_size))
			memcpy(keys + (size_t)count++ * map->key_size, key, map->key_size);
		before = key;
	}
	if (count)
		memcpy((void *)attr->batch.out_batch, before, map->key_size);
	attr->batch.count = count;
	return err;
}

/* One after the other, up to the first that fails; how many were done is written back. */
static long sys_write_batch(int command, struct native_map *map, union bpf_attr *attr)
{
	const __u8 *keys = (const __u8 *)attr->batch.keys, *values = (const __u8 *)attr->batch.values;
	__u32 count = 0;
	long err = 0;

	if (!has_elements(map) && (command == BPF_MAP_DELETE_BATCH || !is_array(map)))
		return -ENOTSUPP;
	for (; count < attr->batch.count; count++) {
		const void *key = keys + (size_t)count * map->key_size;

		err = command == BPF_MAP_DELETE_BATCH
			      ? sys_delete(map, key)
			      : sys_update(map, key, values + (size_t)count * map->value_size, BPF_ANY);
		if (err)
			break;
	}
	attr->batch.count = count;
	return err;
}

static long on_batch(int command, struct native_map *map, union bpf_attr *attr)
{
	if (attr->batch.flags || attr->batch.elem_flags)
		return -EINVAL;
	if (!attr->batch.count)
		return 0;
	if (command != BPF_MAP_LOOKUP_BATCH)
		return sys_write_batch(command, map, attr);
	return map->type == BPF_MAP_TYPE_HASH ? sys_lookup_batch_of_hash(map, attr) : sys_lookup_batch(map, attr);
}

static long on_map(int command, struct native_map *map, union bpf_attr *attr)
{
	switch (command) {
	case BPF_MAP_LOOKUP_ELEM:
		return sys_lookup(map, (const void *)attr->key, (void *)attr->value);
	case BPF_MAP_UPDATE_ELEM:
		return sys_update(map, (const void *)attr->key, (const void *)attr->value, attr->flags);
	case BPF_MAP_DELETE_ELEM:
		return sys_delete(map, (const void *)attr->key);
	case BPF_MAP_LOOKUP_AND_DELETE_ELEM:
		native_check(!recording || !map->count, "a recording can't take from a queue");
		return bpf_map_pop_elem(map, (void *)attr->value);
	default:
		return sys_next_key(map, (const void *)attr->key, (void *)attr->next_key);
	}
}

long native_bpf(int command, union bpf_attr *attr, int fd)
{
	struct native_map *map;

	switch (command) {
	case BPF_MAP_CREATE:
		return sys_create(attr, fd);
	case BPF_OBJ_GET:
		return sys_open(attr, fd);
	case BPF_MAP_GET_FD_BY_ID:
		return open_map(with_id(attr->map_id), fd);
	case BPF_MAP_LOOKUP_BATCH:
	case BPF_MAP_UPDATE_BATCH:
	case BPF_MAP_DELETE_BATCH:
		map = with_fd(attr->batch.map_fd);
		return map ? on_batch(command, map, attr) : -EBADF;
	case BPF_MAP_LOOKUP_ELEM:
	case BPF_MAP_UPDATE_ELEM:
	case BPF_MAP_DELETE_ELEM:
	case BPF_MAP_LOOKUP_AND_DELETE_ELEM:
	case BPF_MAP_GET_NEXT_KEY:
		map = with_fd(attr->map_fd);
		return map ? on_map(command, map, attr) : -EBADF;
	default:
		return -EINVAL;
	}
}
