// SPDX-License-Identifier: GPL-2.0-only
/*
 * The witnesses of the hooks, for kernels before 6.2; see witness.h. Loaded after vfr.bpf.c, whose
 * @offload they write to, and whose programs they are attached to.
 */
#include <linux/bpf.h>
#include "witness.h"

/* The arguments of what is traced; of a tc program, its packet. */
struct vfr_traced {
	struct sk_buff *skb;
};

static __always_inline int leave_word(struct vfr_traced *traced)
{
	__u32 zero = 0;
	struct vfr_offload *seen = bpf_map_lookup_elem(&offload, &zero);

	if (seen)
		witness(traced->skb, seen);
	return 0;
}

SEC("fentry/vif_ingress")
int vif_witness(struct vfr_traced *traced)
{
	return leave_word(traced);
}

SEC("fentry/uplink_ingress")
int uplink_witness(struct vfr_traced *traced)
{
	return leave_word(traced);
}

SEC("fentry/sorter_ingress")
int sorter_witness(struct vfr_traced *traced)
{
	return leave_word(traced);
}

char _license[] SEC("license") = "GPL";
