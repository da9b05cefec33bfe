/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floods: frames as fast as one CPU makes them, each the beginning of something new.
 *
 *   flood INTERFACE TO_MAC FROM_ADDRESS KIND COUNT SECONDS
 *
 *   flows      UDP from eight ports to 200 hosts of the LAN and ever other ports: sessions
 *   ports      UDP from ever other ports to lan1: outside ports
 *   syn        TCP SYNs to addresses that nobody has: half-open sessions
 *   echo       echo requests to lan1 under ever other identifiers
 *   fragments  later fragments, without a first one, of ever other datagrams
 *   spoofed    SYNs to port 2202 of FROM_ADDRESS from made-up addresses of 192.0.2.0/24 and 198.51.100.0/24
 *   scan       SYNs to every address of the LAN and one port after the other
 *   ttl        UDP to lan1 that has no hop left
 *   drops      UDP to domain 169.254.1.3
 *
 * Ends after COUNT frames or SECONDS, whichever is first, and prints one line of JSON. Checksums are right.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define LAN 0xc0000200u      /* 192.0.2.0 */
#define INTERNET 0xc6336400u /* 198.51.100.0 */
#define LAN1 (LAN + 11)
#define DB 0xa9fe0103u /* 169.254.1.3 */
#define LATER (1480 / 8)
/* What waits for a next hop that does not answer stays on the sender's account; a VM has no such account. */
#define SEND_BUFFER (1 << 29)

struct frame {
	uint8_t ether[14];
	uint8_t ip[20];
	uint8_t l4[20];
} __attribute__((packed));

static struct frame frames[BATCH];
static uint8_t to_mac[6], own_mac[6];
static uint32_t own;
static uint8_t ttl = 64;

static void put16(uint8_t *at, unsigned value)
{
	at[0] = value >> 8;
	at[1] = value;
}

static void put32(uint8_t *at, uint32_t value)
{
	put16(at, value >> 16);
	put16(at + 2, value & 0xffff);
}

static uint32_t sum(const uint8_t *at, int length, uint32_t from)
{
	for (int i = 0; i < length; i += 2)
		from += at[i] << 8 | at[i + 1];
	return from;
}

static unsigned folded(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
}

static void ip(struct frame *f, uint32_t from, uint32_t to, int protocol, int l4, unsigned number, unsigned fragment)
{
	memcpy(f->ether, to_mac, 6);
	memcpy(f->ether + 6, own_mac, 6);
	put16(f->ether + 12, ETHERTYPE_IP);
	memset(f->ip, 0, sizeof(f->ip));
	f->ip[0] = 0x45;
	put16(f->ip + 2, 20 + l4);
	put16(f->ip + 4, number);
	put16(f->ip + 6, fragment);
	f->ip[8] = ttl;
	f->ip[9] = protocol;
	put32(f->ip + 12, from);
	put32(f->ip + 16, to);
	put16(f->ip + 10, folded(sum(f->ip, 20, 0)));
}

static int udp(struct frame *f, uint32_t to, unsigned sport, unsigned dport)
{
	ip(f, own, to, IPPROTO_UDP, 8, 0, 0);
	put16(f->l4, sport);
	put16(f->l4 + 2, dport);
	put16(f->l4 + 4, 8);
	put16(f->l4 + 6, 0);
	return 8;
}

static int syn(struct frame *f, uint32_t from, uint32_t to, unsigned sport, unsigned dport)
{
	ip(f, from, to, IPPROTO_TCP, 20, 0, 0);
	memset(f->l4, 0, 20);
	put16(f->l4, sport);
	put16(f->l4 + 2, dport);
	put32(f->l4 + 4, random());
	put16(f->l4 + 12, 5 << 12 | 2);
	put16(f->l4 + 14, 8192);
	put16(f->l4 + 16, folded(sum(f->l4, 20, sum(f->ip + 12, 8, IPPROTO_TCP + 20))));
	return 20;
}

static int echo(struct frame *f, uint32_t to, unsigned identifier)
{
	ip(f, own, to, IPPROTO_ICMP, 8, 0, 0);
	memset(f->l4, 0, 8);
	f->l4[0] = 8;
	put16(f->l4 + 4, identifier);
	put16(f->l4 + 2, folded(sum(f->l4, 8, 0)));
	return 8;
}

static int later_fragment(struct frame *f, uint32_t to, unsigned number)
{
	ip(f, own, to, IPPROTO_UDP, 8, number, LATER);
	memset(f->l4, 'x', 8);
	return 8;
}

/* Frame number n of a kind; the length of its L4. */
static int make(struct frame *f, const char *kind, unsigned long n)
{
	uint32_t made_up = (n & 1 ? LAN : INTERNET) + 2 + random() % 252;

	if (!strcmp(kind, "flows"))
		return udp(f, LAN + 16 + n % 200, 40000 + n % 8, 1024 + n / 200 % 60000);
	if (!strcmp(kind, "ports"))
		return udp(f, LAN1, 1024 + n % 60000, 9);
	if (!strcmp(kind, "syn"))
		return syn(f, own, LAN + 100 + n % 100, 40000 + n % 8, 1024 + n / 100 % 60000);
	if (!strcmp(kind, "echo"))
		return echo(f, LAN1, n);
	if (!strcmp(kind, "fragments"))
		return later_fragment(f, LAN1, n);
	if (!strcmp(kind, "spoofed"))
		return syn(f, made_up, own, 1024 + random() % 64000, 2202);
	if (!strcmp(kind, "scan"))
		return syn(f, own, LAN + 2 + n % 253, 40000 + n % 8, 1 + n / 253 % 65535);
	if (!strcmp(kind, "drops"))
		return udp(f, DB, 40000 + n % 8, 9);
	if (!strcmp(kind, "ttl")) {
		ttl = 1;
		return udp(f, LAN1, 40000, 9);
	}
	fprintf(stderr, "no such kind: %s\n", kind);
	exit(2);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int open_on(const char *interface)
{
	int fd = socket(AF_PACKET, SOCK_RAW, 0), room = SEND_BUFFER;
	struct sockaddr_ll where = { .sll_family = AF_PACKET };
	struct ifreq name = {};

	strncpy(name.ifr_name, interface, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &name)) {
		perror(interface);
		exit(1);
	}
	memcpy(own_mac, name.ifr_hwaddr.sa_data, 6);
	where.sll_ifindex = if_nametoindex(interface);
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) ||
	    bind(fd, (struct sockaddr *)&where, sizeof(where))) {
		perror("bind");
		exit(1);
	}
	return fd;
}

/* A batch of frames from number n on; how many went out. A full queue is no failure. */
static int send_batch(int fd, const char *kind, unsigned long n, int count)
{
	struct mmsghdr messages[BATCH] = {};
	struct iovec data[BATCH];
	int sent;

	for (int i = 0; i < count; i++) {
		data[i].iov_base = &frames[i];
		data[i].iov_len = 34 + make(&frames[i], kind, n + i);
		messages[i].msg_hdr.msg_iov = &data[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	sent = sendmmsg(fd, messages, count, 0);
	if (sent < 0 && errno != ENOBUFS && errno != EAGAIN) {
		perror("sendmmsg");
		exit(1);
	}
	return sent < 0 ? 0 : sent;
}

int main(int argc, char **argv)
{
	unsigned long count, sent = 0;
	double began = now(), seconds;
	struct in_addr from;
	int fd;

	if (argc != 7 || inet_pton(AF_INET, argv[3], &from) != 1 ||
	    sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", to_mac, to_mac + 1, to_mac + 2, to_mac + 3, to_mac + 4,
		   to_mac + 5) != 6) {
		fprintf(stderr, "usage: %s INTERFACE TO_MAC FROM_ADDRESS KIND COUNT SECONDS\n", argv[0]);
		return 2;
	}
	own = ntohl(from.s_addr);
	count = strtoul(argv[5], NULL, 10);
	seconds = atof(argv[6]);
	fd = open_on(argv[1]);
	while (sent < count && now() - began < seconds)
		sent += send_batch(fd, argv[4], sent, count - sent < BATCH ? count - sent : BATCH);
	return printf("{\"sent\": %lu, \"seconds\": %.2f}\n", sent, now() - began) < 0;
}
