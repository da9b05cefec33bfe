// SPDX-License-Identifier: GPL-2.0-only
/* Two programs that sign a list in the order in which they run. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3); /* row 0: how many have signed; then who */
	__type(key, __u32);
	__type(value, __u32);
} signatures SEC(".maps");

static __always_inline int sign(__u32 who)
{
	__u32 zero = 0, place;
	__u32 *count = bpf_map_lookup_elem(&signatures, &zero);

	if (!count)
		return TC_ACT_SHOT;
	place = ++*count;
	bpf_map_update_elem(&signatures, &place, &who, BPF_ANY);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int one(struct __sk_buff *skb)
{
	return sign(1);
}

SEC("tc")
int two(struct __sk_buff *skb)
{
	return sign(2);
}

char _license[] SEC("license") = "GPL";
