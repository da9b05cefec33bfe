// SPDX-License-Identifier: GPL-2.0-only
/* The two ways into somebody's stack. `target` holds the interface index. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

static __always_inline __u32 target_index(void)
{
	__u32 zero = 0, *index = bpf_map_lookup_elem(&target, &zero);

	return index ? *index : 0;
}

SEC("tc")
int to_peer(struct __sk_buff *skb)
{
	return bpf_redirect_peer(target_index(), 0);
}

SEC("tc")
int to_ingress(struct __sk_buff *skb)
{
	return bpf_redirect(target_index(), BPF_F_INGRESS);
}

char _license[] SEC("license") = "GPL";
