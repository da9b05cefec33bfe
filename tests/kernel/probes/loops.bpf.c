// SPDX-License-Identifier: GPL-2.0-only
/* bpf_loop, and bpf_for_each_map_elem over an inner map that only the running program knows, with
 * deletion on the way, as the fastpath clears its tables. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps");

static long count(__u32 i, __u32 *sum)
{
	*sum += 1;
	return i == 99; /* ends the loop early */
}

SEC("tc")
int looped(struct __sk_buff *skb)
{
	__u32 sum = 0;

	bpf_loop(1000, count, &sum, 0);
	return sum;
}

static long drop_odd(void *map, const __u32 *key, __u32 *value, __u32 *seen)
{
	*seen += 1;
	if (*value & 1)
		bpf_map_delete_elem(map, key);
	return 0;
}

SEC("tc")
int each_element(struct __sk_buff *skb)
{
	__u32 row = 1, seen = 0;
	void *map = bpf_map_lookup_elem(&outer, &row);

	if (map)
		bpf_for_each_map_elem(map, drop_odd, &seen, 0);
	return seen;
}

char _license[] SEC("license") = "GPL";
