// SPDX-License-Identifier: GPL-2.0-only
/*
 * skb: the one packet at hand, and the helpers that read and change it.
 *
 *      arena:   ....poison....[ linear part ]....poison....        low enough for a 32-bit data field
 *      pages:   [ the rest of the frame ]                          out of the program's reach
 *
 * As in the kernel, a helper that wants to write first pulls what it needs into the linear part. What a
 * helper returns, and what it does to a checksum, follows net/core/filter.c and net/core/utils.c of
 * Linux 6.1; CHECKSUM_COMPLETE is not emulated (as the helpers see it, it is CHECKSUM_NONE plus a sum
 * that only drivers and the receiving stack look at).
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "kernel.h"

#define ENOTSUPP 524
#define HEADROOM 4096 /* more than BPF_ADJ_ROOM can ask for in two calls; keeps the frame 8-aligned */
#define ARENA_SIZE (2 * HEADROOM + NATIVE_FRAME_MAX + 4096)
#define SKB_MAX_LEN 16064 /* BPF_SKB_MAX_LEN: what one allocation of four pages holds */
#define CSUM_MANGLED_0 0xffff

static struct {
	struct __sk_buff context;
	__u8 *arena, *data;
	__u32 linear;                /* bytes from data on */
	__u32 length;                /* and in all */
	__u8 pages[NATIVE_FRAME_MAX + HEADROOM];
	__u32 pages_at;              /* what lies before was pulled */
	bool partial;
	int csum_start;              /* from data */
	__u16 csum_offset;
	__u32 fail_at, calls;
	struct native_result told;   /* by the redirect helpers */
} skb;

static __u64 clock_ns;
static __u32 random_state;
static bool random_fixed;
static __u8 host_ports[2][(1 << 16) / 8]; /* TCP, UDP: a bit for each port that the host has a socket on */

void native_clock(__u64 ns)
{
	clock_ns = ns;
}

void native_random(__u32 seed, bool fixed)
{
	random_state = seed;
	random_fixed = fixed;
}

void native_host_listens(__u8 protocol, __u16 port, bool listens)
{
	__u8 *byte = &host_ports[protocol == IPPROTO_UDP][port / 8], bit = 1 << port % 8;

	*byte = listens ? *byte | bit : *byte & ~bit;
}

void native_host_is_silent(void)
{
	memset(host_ports, 0, sizeof(host_ports));
}

bool native_host_has(__u8 protocol, __u16 port)
{
	return protocol != IPPROTO_ICMP && host_ports[protocol == IPPROTO_UDP][port / 8] & 1 << port % 8;
}

bool native_no_memory(void)
{
	return ++skb.calls == skb.fail_at;
}

/* The program may touch this much, and not a byte more. */
static void show(__u8 *data, __u32 linear)
{
	NATIVE_POISON(skb.arena, ARENA_SIZE);
	NATIVE_UNPOISON(data, linear);
	skb.data = data;
	skb.linear = linear;
	skb.context.len = skb.length;
	skb.context.data = (__u32)(unsigned long)data;
	skb.context.data_end = skb.context.data + linear;
}

static void map_arena(void)
{
	skb.arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	native_check(skb.arena != MAP_FAILED, "no memory below 4 GiB");
	skb.data = skb.arena + HEADROOM;
}

static __u32 type_of(const __u8 *frame, __u32 length, const __u8 host_mac[6])
{
	if (length < ETH_HLEN || !memcmp(frame, host_mac, ETH_ALEN))
		return PACKET_HOST;
	if (frame[0] & 1)
		return memcmp(frame, "\xff\xff\xff\xff\xff\xff", ETH_ALEN) ? PACKET_MULTICAST : PACKET_BROADCAST;
	return PACKET_OTHERHOST;
}

void skb_begin(const struct native_frame *frame, const __u8 host_mac[6])
{
	__u32 linear = frame->linear && frame->linear < frame->length ? frame->linear : frame->length;

	native_check(frame->length <= NATIVE_FRAME_MAX, "a frame of %u bytes", frame->length);
	if (!skb.arena)
		map_arena();
	skb.context = (struct __sk_buff){
		.pkt_type = type_of(frame->data, frame->length, host_mac),
		.mark = frame->mark,
		.protocol = frame->length >= ETH_HLEN ? frame->data[12] | frame->data[13] << 8 : 0,
		.vlan_present = frame->vlan,
		.ifindex = frame->ifindex, .ingress_ifindex = frame->ifindex,
		.gso_size = frame->gso_size, .gso_segs = frame->gso_segs,
	};
	skb.length = frame->length;
	skb.partial = frame->partial;
	skb.csum_start = frame->csum_start;
	skb.csum_offset = frame->csum_offset;
	skb.fail_at = frame->fail_at;
	skb.calls = 0;
	skb.told = (struct native_result){};
	skb.pages_at = 0;
	show(skb.arena + HEADROOM, linear);
	memcpy(skb.data, frame->data, linear);
	memcpy(skb.pages, frame->data + linear, frame->length - linear);
}

struct __sk_buff *skb_context(void)
{
	return &skb.context;
}

/* What bpf_cast_to_kern_ctx shows. Returns whether the checksum is partial. */
bool skb_kernel_view(void **head, void **data, __u16 *csum_start, __u16 *csum_offset)
{
	*head = skb.arena;
	*data = skb.data;
	*csum_start = (__u16)(skb.data - skb.arena + skb.csum_start);
	*csum_offset = skb.csum_offset;
	return skb.partial;
}

/* Brings `length` bytes into the linear part (pskb_may_pull and skb_ensure_writable in one). */
static long pull(__u32 length)
{
	__u32 more;

	if (native_no_memory() || length > skb.length)
		return -ENOMEM;
	if (length <= skb.linear)
		return 0;
	more = length - skb.linear;
	show(skb.data, length);
	memcpy(skb.data + length - more, skb.pages + skb.pages_at, more);
	skb.pages_at += more;
	return 0;
}

/* The frame is whole again, for whoever looks at it after the program. */
void skb_end(struct native_result *result)
{
	skb.fail_at = 0;
	native_check(!pull(skb.length), "a frame of %u bytes", skb.length);
	result->redirect = skb.told.redirect;
	result->redirect_ifindex = skb.told.redirect_ifindex;
	result->redirect_flags = skb.told.redirect_flags;
	result->mark = skb.context.mark;
	result->pkt_type = skb.context.pkt_type;
	result->length = skb.length;
	result->data = skb.data;
}

long bpf_skb_pull_data(struct __sk_buff *context, __u32 length)
{
	return pull(length ? length : skb.linear);
}

long bpf_skb_load_bytes(const void *context, __u32 offset, void *to, __u32 length)
{
	__u32 near;

	if (offset > skb.length || length > skb.length - offset) {
		memset(to, 0, length);
		return -EFAULT;
	}
	near = offset < skb.linear ? skb.linear - offset : 0;
	near = near < length ? near : length;
	memcpy(to, skb.data + offset, near);
	if (near < length)
		memcpy((__u8 *)to + near, skb.pages + skb.pages_at + (offset + near - skb.linear), length - near);
	return 0;
}

long bpf_skb_store_bytes(struct __sk_buff *context, __u32 offset, const void *from, __u32 length, __u64 flags)
{
	if (flags & ~(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH))
		return -EINVAL;
	if (offset > INT32_MAX || length > UINT32_MAX - offset || pull(offset + length))
		return -EFAULT;
	memcpy(skb.data + offset, from, length);
	return 0;
}

/* A GSO frame that is cut is one no more. A frame whose checksum is partial can't be cut before the
 * end of the field that is to be completed. */
long bpf_skb_change_tail(struct __sk_buff *context, __u32 length, __u64 flags)
{
	int least = skb.partial ? skb.csum_start + skb.csum_offset + 2 : 0;
	__u32 before = skb.length;

	if (least <= 0)
		least = ETH_HLEN;
	if (flags || length > SKB_MAX_LEN || length < (__u32)least)
		return -EINVAL;
	if (pull(skb.length))
		return -ENOMEM;
	skb.length = length;
	show(skb.data, length);
	if (length > before)
		memset(skb.data + before, 0, length - before);
	skb.context.gso_size = skb.context.gso_segs = 0;
	return 0;
}

/* Grows between the Ethernet and the IP header; other modes, and shrinking, nobody uses yet. */
long bpf_skb_adjust_room(struct __sk_buff *context, __s32 difference, __u32 mode, __u64 flags)
{
	native_check(mode == BPF_ADJ_ROOM_MAC && difference >= 0 && !(flags & ~BPF_F_ADJ_ROOM_NO_CSUM_RESET),
		     "adjust_room(%d, %u, %llu) is not emulated", difference, mode, flags);
	if (difference > 0xfff)
		return -EFAULT;
	if (skb.context.protocol != bpf_htons(ETH_P_IP) && skb.context.protocol != bpf_htons(ETH_P_IPV6))
		return -ENOTSUPP;
	if (skb.length + difference > SKB_MAX_LEN && !skb.context.gso_size)
		return -ENOTSUPP;
	if (native_no_memory())
		return -ENOMEM;
	native_check(skb.data - difference > skb.arena, "the headroom is used up");
	native_check(skb.linear >= ETH_HLEN, "Ethernet headers are always in the linear part");
	skb.length += difference;
	skb.csum_start += difference;
	show(skb.data - difference, skb.linear + difference);
	memmove(skb.data, skb.data + difference, ETH_HLEN);
	memset(skb.data + ETH_HLEN, 0, difference);
	if (skb.context.gso_size) {
		skb.context.gso_size -= difference;
		skb.context.gso_segs = 0;
	}
	return 0;
}

long bpf_skb_change_type(struct __sk_buff *context, __u32 type)
{
	if (skb.context.pkt_type > PACKET_OTHERHOST || type > PACKET_OTHERHOST)
		return -EINVAL;
	skb.context.pkt_type = type;
	return 0;
}

/* Checksums: 32-bit ones' complement sums, as include/net/checksum.h has them. */

static __u32 csum_add(__u32 a, __u32 b)
{
	__u64 sum = (__u64)a + b;

	return (__u32)sum + (__u32)(sum >> 32);
}

static __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~(sum + (sum >> 16));
}

/* `*field` for one fact that changed: a complete checksum has it inverted, a partial one has only
 * the pseudo header in it, and that as it is. */
static void replace(__u16 *field, __u32 from, __u32 to, bool partial)
{
	__u32 sum = partial ? *field : (__u16)~*field;

	sum = csum_add(csum_add(sum, ~from), to);
	*field = partial ? (__u16)~csum_fold(sum) : csum_fold(sum);
}

/* What both helpers check, and the change of the two sizes, or of a difference (`from` must be 0). */
static long change_sum(__u32 offset, __u64 from, __u64 to, __u64 size, bool leave, bool partial)
{
	__u16 field;

	if ((size != 0 && size != 2 && size != 4) || (size == 0 && from))
		return -EINVAL;
	if (leave)
		return 0;
	memcpy(&field, skb.data + offset, sizeof(field));
	if (size == 2)
		replace(&field, (__u16)from, (__u16)to, partial);
	else
		replace(&field, size ? (__u32)from : UINT32_MAX, (__u32)to, partial);
	memcpy(skb.data + offset, &field, sizeof(field));
	return 0;
}

long bpf_l3_csum_replace(struct __sk_buff *context, __u32 offset, __u64 from, __u64 to, __u64 flags)
{
	if (flags & ~BPF_F_HDR_FIELD_MASK)
		return -EINVAL;
	if (offset > 0xffff || offset & 1 || pull(offset + 2))
		return -EFAULT;
	return change_sum(offset, from, to, flags, false, false);
}

long bpf_l4_csum_replace(struct __sk_buff *context, __u32 offset, __u64 from, __u64 to, __u64 flags)
{
	bool pseudo = flags & BPF_F_PSEUDO_HDR, zero_is_none = flags & BPF_F_MARK_MANGLED_0;
	__u16 field;
	long err;

	if (flags & ~(BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE | BPF_F_PSEUDO_HDR | BPF_F_HDR_FIELD_MASK))
		return -EINVAL;
	if (offset > 0xffff || offset & 1 || pull(offset + 2))
		return -EFAULT;
	memcpy(&field, skb.data + offset, sizeof(field));
	if (zero_is_none && !(flags & BPF_F_MARK_ENFORCE) && !field)
		return 0;
	err = change_sum(offset, from, to, flags & BPF_F_HDR_FIELD_MASK, skb.partial && !pseudo, skb.partial);
	memcpy(&field, skb.data + offset, sizeof(field));
	if (!err && zero_is_none && !field) {
		field = CSUM_MANGLED_0;
		memcpy(skb.data + offset, &field, sizeof(field));
	}
	return err;
}

__s64 bpf_csum_diff(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __wsum seed)
{
	__u32 sum = seed;

	if ((from_size | to_size) & 3 || from_size + to_size > 512)
		return -EINVAL;
	for (__u32 i = 0; i < from_size / 4; i++)
		sum = csum_add(sum, ~from[i]);
	for (__u32 i = 0; i < to_size / 4; i++)
		sum = csum_add(sum, to[i]);
	return sum;
}

/* Ways out: what was asked is noted down; the harness judges it. */

static long redirect(enum native_redirect kind, __u32 ifindex, __u64 flags, __u64 allowed)
{
	if (flags & ~allowed)
		return TC_ACT_SHOT;
	skb.told.redirect = kind;
	skb.told.redirect_ifindex = ifindex;
	skb.told.redirect_flags = (__u32)flags;
	return TC_ACT_REDIRECT;
}

long bpf_redirect(__u32 ifindex, __u64 flags)
{
	return redirect(NATIVE_REDIRECT, ifindex, flags, BPF_F_INGRESS);
}

long bpf_redirect_peer(__u32 ifindex, __u64 flags)
{
	return redirect(NATIVE_PEER, ifindex, flags, 0);
}

long bpf_redirect_neigh(__u32 ifindex, struct bpf_redir_neigh *next_hop, int length, __u64 flags)
{
	if (length && (__u32)length < sizeof(*next_hop))
		return TC_ACT_SHOT;
	return redirect(NATIVE_NEIGH, ifindex, flags, 0);
}

/* The rest of the kernel. */

static struct bpf_sock some_socket;
static int sockets_held;

/* For any remote, as bound and listening sockets are. */
static struct bpf_sock *look_up_socket(__u8 protocol, const struct bpf_sock_tuple *tuple, __u32 size)
{
	if (size != sizeof(tuple->ipv4) || !native_host_has(protocol, bpf_ntohs(tuple->ipv4.dport)))
		return NULL;
	sockets_held++;
	return &some_socket;
}

struct bpf_sock *bpf_skc_lookup_tcp(void *context, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags)
{
	return look_up_socket(IPPROTO_TCP, tuple, size);
}

struct bpf_sock *bpf_sk_lookup_tcp(void *context, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags)
{
	return look_up_socket(IPPROTO_TCP, tuple, size);
}

struct bpf_sock *bpf_sk_lookup_udp(void *context, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags)
{
	return look_up_socket(IPPROTO_UDP, tuple, size);
}

long bpf_sk_release(void *sock)
{
	native_check(sock == &some_socket && sockets_held > 0, "released a socket that is not held");
	sockets_held--;
	return 0;
}

__u64 bpf_ktime_get_ns(void)
{
	return clock_ns;
}

__u32 bpf_get_prandom_u32(void)
{
	if (!random_fixed)
		random_state = random_state * 1664525 + 1013904223; /* Numerical Recipes' generator */
	return random_fixed ? random_state : random_state >> 8 | random_state << 24;
}

__u32 bpf_get_smp_processor_id(void)
{
	return 0;
}
