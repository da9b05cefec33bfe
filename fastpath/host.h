/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * host: does a socket of the host's wait for a packet?
 *
 * The host's programs keep their ports, also in our NAT range, where one may bind at any time. So no new
 * mapping takes a port that a socket has, and what comes to a mapping's port without belonging to one of
 * its conversations is for a socket that was bound since, if there is one.
 *
 * NOTE: asked from a VIF, a socket that is tied to the uplink (SO_BINDTODEVICE) is not seen, nor is TCP that
 * is bound and does not listen. A mapping may take such a port; strangers reach the socket all the same.
 */
#ifndef VFR_HOST_H
#define VFR_HOST_H

#include "parse.h"

/* Whether the remote's packet to this port of the LAN address would find a socket of the host's: one of
 * that very conversation, or one that takes anybody's. Protocols without sockets have none. */
__noinline int host_owns(struct __sk_buff *skb, __u32 protocol, __be32 remote, __be16 remote_port, __be16 port)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = remote, .sport = remote_port, .dport = port },
	};
	struct vfr_config *config = config_now();
	struct bpf_sock *sk = NULL;

	if (!config)
		return false;
	tuple.ipv4.daddr = config->outside_address;
	if (protocol == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else if (protocol == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

#endif
