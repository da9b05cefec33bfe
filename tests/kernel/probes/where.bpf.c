// SPDX-License-Identifier: GPL-2.0-only
/* Answers with the interface that the frame came in by. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int where(struct __sk_buff *skb)
{
	return skb->ifindex;
}

char _license[] SEC("license") = "GPL";
