/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * witness: what the kernel's own sk_buff says of a checksum that is still to be written.
 *
 * Since Linux 6.2 a tc program can ask for itself (bpf_cast_to_kern_ctx). Before, only tracing programs
 * see the kernel's own structures, so one of these (witness.bpf.c) runs at the entry of each of our hooks
 * and leaves word in @offload, on the same CPU and for the very frame that the hook is about to judge. Its
 * word is good once: without a witness there is none, and the frame is dropped.
 */
#ifndef VFR_WITNESS_H
#define VFR_WITNESS_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "vfr_abi.h"

#define CHECKSUM_PARTIAL 3

/* The few fields that are read, wherever this kernel has them. */
struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	__u16 csum_start;
	__u16 csum_offset;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vfr_offload);
} offload SEC(".maps");

/* Field by field: of a whole struct that is assigned, clang 14 forgets what was read through CO-RE. */
static __always_inline void witness(struct sk_buff *skb, struct vfr_offload *seen)
{
	seen->partial = BPF_CORE_READ_BITFIELD(skb, ip_summed) == CHECKSUM_PARTIAL;
	seen->start = skb->csum_start - (__u32)(skb->data - skb->head);
	seen->field = seen->start + skb->csum_offset;
	seen->known = 1;
}

#endif
