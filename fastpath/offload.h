/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * offload: what the frame asks of whoever sends it on.
 *
 * A sender with virtio-net headers (a VM, or AF_PACKET with PACKET_VNET_HDR) says where a checksum is
 * to be written later: at csum_start + csum_offset. That may be anywhere, also over the source address
 * that guard has just checked; the kernel would write there after our verdict. So a frame whose
 * checksum is still to be completed passes only if the place is the checksum field of its L4 header.
 *
 * It also says of what size the segments are that the frame is to be cut into (GSO). The kernel checks
 * that against the packet when it cuts, but would cut a fragment as well: into fragments that lie over
 * each other, under identifications that are another's.
 */
#ifndef VFR_OFFLOAD_H
#define VFR_OFFLOAD_H

#include "parse.h"
#include "witness.h"

#define SEGMENTS_MAX 512 /* of one frame of a domain's */

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

/* Whether the frame may be cut as it asks to be: only a whole packet is, and a domain's not into so many pieces
 * that one frame of its would be a flood. Linux in earnest makes at most 64 KiB of segments of 200 bytes. */
static __always_inline bool may_be_cut(const struct vfr_pkt *p)
{
	__u32 load = p->skb->len - L4_OFFSET - p->l4_length;

	return may_be_partial(p) && !p->fragment && (!p->from || load <= SEGMENTS_MAX * p->skb->gso_size);
}

/* The witness's word, which is good once. */
static __always_inline void take_word(struct vfr_offload *seen)
{
	__u32 zero = 0;
	struct vfr_offload *left = bpf_map_lookup_elem(&offload, &zero);

	if (!left)
		return;
	*seen = *left;
	left->known = 0;
}

static __always_inline enum vfr_verdict check_offload(struct vfr_pkt *p)
{
	struct vfr_offload seen = {};

	if (kernel_context)
		witness(bpf_cast_to_kern_ctx(p->skb), &seen);
	else
		take_word(&seen);
	p->partial = seen.partial;
	if (p->skb->gso_size && !may_be_cut(p))
		return VFR_DROP_OFFLOAD;
	if (seen.known && !seen.partial)
		return VFR_CONTINUE;
	return seen.known && may_be_partial(p) && seen.start == L4_OFFSET && seen.field == l4_checksum_offset(p->l4_proto)
		       ? VFR_CONTINUE
		       : VFR_DROP_OFFLOAD;
}

#endif
