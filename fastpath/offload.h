/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * offload: what the frame asks of whoever sends it on.
 *
 * A sender with virtio-net headers (a VM, or AF_PACKET with PACKET_VNET_HDR) says where a checksum is
 * to be written later: at csum_start + csum_offset. That may be anywhere, also over the source address
 * that guard has just checked; the kernel would write there after our verdict. So a frame whose
 * checksum is still to be completed passes only if the place is the checksum field of its L4 header.
 *
 * Since Linux 6.2 the kernel's own sk_buff can be read (bpf_cast_to_kern_ctx). Before, two helpers
 * tell: bpf_l4_csum_replace leaves the field alone if the checksum is partial, and bpf_skb_change_tail
 * refuses to cut a frame before the end of that place. What lies behind the field is the sender's own
 * payload, which it could have written itself.
 */
#ifndef VFR_OFFLOAD_H
#define VFR_OFFLOAD_H

#include <bpf/bpf_core_read.h>
#include "parse.h"

#define CHECKSUM_PARTIAL 3
#define EINVAL 22

/* The few fields of the kernel's own that are read, wherever this kernel has them. */
struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	__u16 csum_start;
	__u16 csum_offset;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *skb) __ksym __weak;

/* Set by the loader: this kernel has bpf_cast_to_kern_ctx. */
const volatile __u8 kernel_context = 0;

static __always_inline __u32 l4_checksum_offset(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return L4_OFFSET + offsetof(struct tcphdr, check);
	if (protocol == IPPROTO_UDP)
		return L4_OFFSET + offsetof(struct udphdr, check);
	return L4_OFFSET + offsetof(struct vfr_icmp, checksum);
}

/* Only TCP and UDP have their checksums completed later, and only a packet with its L4 header can. */
static __always_inline bool may_be_partial(const struct vfr_pkt *p)
{
	return !p->later && !p->error && (p->l4_proto == IPPROTO_TCP || p->l4_proto == IPPROTO_UDP);
}

static __always_inline enum vfr_verdict read_offload(struct vfr_pkt *p)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(p->skb);
	__u64 start;

	p->partial = BPF_CORE_READ_BITFIELD(skb, ip_summed) == CHECKSUM_PARTIAL;
	if (!p->partial)
		return VFR_CONTINUE;
	start = (__u64)skb->head + skb->csum_start - (__u64)skb->data;
	return may_be_partial(p) && start == L4_OFFSET &&
	       start + skb->csum_offset == l4_checksum_offset(p->l4_proto) ? VFR_CONTINUE : VFR_DROP_OFFLOAD;
}

/* Whether bpf_l4_csum_replace leaves the field as it is: 1, 0, or a negative errno. */
static __always_inline int probe_partial(struct __sk_buff *skb, __u32 field)
{
	__u16 before, after;
	int err;

	err = bpf_skb_load_bytes(skb, field, &before, sizeof(before));
	if (!err)
		err = bpf_l4_csum_replace(skb, field, 0, bpf_htons(1), sizeof(before));
	if (!err)
		err = bpf_skb_load_bytes(skb, field, &after, sizeof(after));
	if (!err && before != after)
		err = bpf_skb_store_bytes(skb, field, &before, sizeof(before), 0);
	return err ? err : before == after;
}

__noinline int probe_offload(struct __sk_buff *skb, __u32 field, __u32 allowed)
{
	int partial = probe_partial(skb, field);

	if (partial != 1 || !allowed)
		return partial ? -EINVAL : 0;
	/* A success has cut the frame, and shows that the place is not behind this. */
	return bpf_skb_change_tail(skb, field + 1, 0) == -EINVAL ? 1 : -EINVAL;
}

/* What may not be partial is probed at any two bytes that are surely there: its identification. */
static __always_inline enum vfr_verdict check_offload(struct vfr_pkt *p)
{
	bool allowed = may_be_partial(p);
	int partial;

	if (kernel_context)
		return read_offload(p);
	partial = probe_offload(p->skb, allowed ? l4_checksum_offset(p->l4_proto) : L3_OFFSET + offsetof(struct iphdr, id),
				allowed);
	p->partial = partial == 1;
	return partial < 0 ? VFR_DROP_OFFLOAD : VFR_CONTINUE;
}

#endif
