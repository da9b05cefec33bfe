/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The benchmark's generators and receivers. Each end is a process of its own, in a node of its own.
 *
 *   load stream listen|connect ADDRESS PORT send|receive STREAMS SECONDS
 *   load rr     listen|connect ADDRESS PORT SECONDS      one byte there, one back, one after the other
 *   load new    listen|connect ADDRESS PORT SECONDS fin|reset   TCP connections, CLIENTS at a time
 *   load udp    listen|connect ADDRESS PORT SECONDS      datagrams of 18 bytes, by sendmmsg and recvmmsg
 *   load ring   INTERFACE HEXFRAME SECONDS FRAMES FLOWS FIRST   a frame through an AF_PACKET ring, past the qdisc
 *
 * Who listens says "up" when it does. What is measured is what arrived, where it arrived: the receiver of streams
 * and datagrams, the asking end of rr and new. It measures for SECONDS, after WARM_S, says one line of JSON and
 * ends. `ring` only says what was sent, in how long; the frames are counted by whoever gets them. It ends after
 * SECONDS or, if that is not 0, about FRAMES. FLOWS > 1 gives each frame other UDP ports, that many in turn, from
 * number FIRST on. The server of `new` ends each connection at once: by FIN, and then has it in TIME_WAIT, or by
 * reset, and neither end remembers it. `busy_s` is what all CPUs together did meanwhile, of all processes. Every process ends with its
 * standard input. An error is a line of JSON, too.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM_S 0.1
#define DEADLINE_S 3 /* for a connection to come about, or an answer to arrive */
#define BUFFER (256 << 10)
#define STREAMS 64
#define SAMPLES (4 << 20)
#define CLIENTS 16
#define DATAGRAMS 64
#define DATAGRAM 18 /* in a frame of 60 bytes, 64 with its checksum */
#define RING_FRAMES 256
#define RING_FRAME 256
#define RING_BLOCK 4096
#define RING_DATA (TPACKET2_HDRLEN - sizeof(struct sockaddr_ll))
#define UDP_PORTS 34 /* where they lie in a frame without IP options */
#define FLOW_PORTS 1000

static char zeros[BUFFER];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void nap(double seconds)
{
	struct timespec t = { .tv_sec = seconds, .tv_nsec = (seconds - (long)seconds) * 1e9 };

	nanosleep(&t, NULL);
}

static void die(const char *what)
{
	printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static void up(void)
{
	printf("up\n");
	fflush(stdout);
}

/* What all CPUs did since boot that was not idling, in seconds. */
static double busy(void)
{
	long user, nice, system, idle, wait, irq, softirq, steal;
	FILE *stat = fopen("/proc/stat", "r");

	if (!stat || fscanf(stat, "cpu %ld %ld %ld %ld %ld %ld %ld %ld", &user, &nice, &system, &idle, &wait, &irq,
			    &softirq, &steal) != 8)
		die("/proc/stat");
	fclose(stat);
	return (double)(user + nice + system + irq + softirq + steal) / sysconf(_SC_CLK_TCK);
}

static void *end_with_input(void *unused)
{
	char byte;

	(void)unused;
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	_exit(0);
}

/* A thread that is there for as long as the process is. */
static void spawn(void *(*work)(void *), void *argument)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, work, argument);
	if (errno)
		die("a thread");
}

/* Sockets */

static struct sockaddr_in at(const char *address, const char *port)
{
	struct sockaddr_in made = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, address, &made.sin_addr) != 1) {
		errno = EINVAL;
		die(address);
	}
	return made;
}

static void set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)))
		die("setsockopt");
}

static int listening(struct sockaddr_in where, int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	if (fd < 0)
		die("socket");
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (bind(fd, (struct sockaddr *)&where, sizeof(where)) || listen(fd, 4096))
		die("listen");
	up();
	return fd;
}

static int connected(struct sockaddr_in where)
{
	struct timeval patience = { .tv_sec = DEADLINE_S };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		die("socket");
	if (connect(fd, (struct sockaddr *)&where, sizeof(where)))
		die("connect");
	return fd;
}

/* COUNT connections, accepted or made. */
static void converse(bool listens, struct sockaddr_in where, int *fds, int count)
{
	int listener = listens ? listening(where, 0) : -1;

	for (int i = 0; i < count; i++) {
		fds[i] = listens ? accept(listener, NULL, NULL) : connected(where);
		if (fds[i] < 0)
			die("accept");
	}
}

/* stream */

struct stream {
	int fd;
	long bytes; /* written by one thread, read by another */
};

static void *send_stream(void *argument)
{
	struct stream *s = argument;

	while (send(s->fd, zeros, BUFFER, MSG_NOSIGNAL) > 0)
		;
	_exit(0); /* the receiver has what it wanted */
}

static void *receive_stream(void *argument)
{
	struct stream *s = argument;
	char *buffer = malloc(BUFFER);
	ssize_t got;

	if (!buffer)
		die("memory");
	while ((got = recv(s->fd, buffer, BUFFER, 0)) > 0)
		__atomic_fetch_add(&s->bytes, got, __ATOMIC_RELAXED);
	die("receiving");
	return NULL;
}

static long received(struct stream *streams, int count)
{
	long sum = 0;

	for (int i = 0; i < count; i++)
		sum += __atomic_load_n(&streams[i].bytes, __ATOMIC_RELAXED);
	return sum;
}

static int stream(bool listens, struct sockaddr_in where, bool sends, int count, double seconds)
{
	static struct stream streams[STREAMS];
	int fds[STREAMS];
	double from, cpu;
	long bytes;

	converse(listens, where, fds, count);
	for (int i = 0; i < count; i++) {
		streams[i].fd = fds[i];
		spawn(sends ? send_stream : receive_stream, &streams[i]);
	}
	if (sends)
		pause();
	nap(WARM_S);
	from = now(), cpu = busy(), bytes = received(streams, count);
	nap(seconds);
	printf("{\"bytes\": %ld, \"seconds\": %.6f, \"busy_s\": %.2f}\n", received(streams, count) - bytes, now() - from,
	       busy() - cpu);
	return 0;
}

/* rr */

static int ascending(const void *a, const void *b)
{
	float difference = *(const float *)a - *(const float *)b;

	return (difference > 0) - (difference < 0);
}

static int echo(int fd)
{
	char byte;

	while (recv(fd, &byte, 1, 0) == 1)
		if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
			break;
	return 0;
}

static int rr(bool listens, struct sockaddr_in where, double seconds)
{
	float *us = malloc(SAMPLES * sizeof(*us));
	double began, from, before, after, cpu = busy();
	long count = 0;
	char byte = 0;
	int fd;

	converse(listens, where, &fd, 1);
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (listens)
		return echo(fd);
	if (!us)
		die("memory");
	from = began = before = now();
	while (before - from < seconds && count < SAMPLES) {
		if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
			die("an answer");
		after = now();
		us[count++] = (after - before) * 1e6;
		before = after;
		if (from == began && after - began > WARM_S)
			from = after, count = 0, cpu = busy();
	}
	cpu = busy() - cpu;
	qsort(us, count, sizeof(*us), ascending);
	printf("{\"count\": %ld, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, "
	       "\"busy_s\": %.2f}\n",
	       count, before - from, us[count / 2], us[count * 99 / 100], us[count * 999 / 1000], cpu);
	return 0;
}

/* new */

static int accept_and_close(struct sockaddr_in where, bool resets)
{
	struct linger by_reset = { .l_onoff = resets };
	int listener = listening(where, 0), fd;

	if (setsockopt(listener, SOL_SOCKET, SO_LINGER, &by_reset, sizeof(by_reset))) /* those accepted have it from here */
		die("SO_LINGER");
	while ((fd = accept(listener, NULL, NULL)) >= 0)
		close(fd);
	die("accept");
	return 1;
}

static void start_one(int epoll, int slot, const struct sockaddr_in *to, int *fds, double *since)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP, .data.u32 = slot };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0)
		die("socket");
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		die("connect");
	fds[slot] = fd;
	since[slot] = now();
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

/* The other end has closed, or the connection failed: the error, 0 if none. */
static int finish(int fd)
{
	int error = 0;
	socklen_t size = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
	close(fd);
	return error;
}

/* Connections that came about; `failed` have an error; `slow` took a second, so a SYN was lost; `stuck` still do. */
static int connect_and_close(struct sockaddr_in where, double seconds, bool resets)
{
	int epoll = epoll_create1(0), fds[CLIENTS], count, error, last = 0;
	long done = 0, failed = 0, slow = 0, stuck = 0;
	struct epoll_event events[CLIENTS];
	double since[CLIENTS], from = now(), cpu = busy();

	for (int i = 0; i < CLIENTS; i++)
		start_one(epoll, i, &where, fds, since);
	while (now() - from < seconds) {
		count = epoll_wait(epoll, events, CLIENTS, 100);
		for (int i = 0; i < count; i++) {
			int slot = events[i].data.u32;

			error = finish(fds[slot]);
			if (resets && error == ECONNRESET)
				error = 0;
			done += !error;
			failed += !!error;
			last = error ? error : last;
			slow += now() - since[slot] >= 1;
			start_one(epoll, slot, &where, fds, since);
		}
	}
	for (int i = 0; i < CLIENTS; i++)
		stuck += now() - since[i] >= seconds / 2;
	printf("{\"count\": %ld, \"failed\": %ld, \"reason\": \"%s\", \"slow\": %ld, \"stuck\": %ld, \"seconds\": %.6f, "
	       "\"busy_s\": %.2f}\n",
	       done, failed, last ? strerror(last) : "", slow, stuck, now() - from, busy() - cpu);
	return 0;
}

/* udp */

static void fill(struct mmsghdr *messages, struct iovec *data, char (*bytes)[DATAGRAM])
{
	for (int i = 0; i < DATAGRAMS; i++) {
		data[i] = (struct iovec){ bytes[i], DATAGRAM };
		messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &data[i], .msg_iovlen = 1 } };
	}
}

static int udp(bool listens, struct sockaddr_in where, double seconds)
{
	static char bytes[DATAGRAMS][DATAGRAM];
	struct mmsghdr messages[DATAGRAMS];
	struct iovec data[DATAGRAMS];
	int fd = socket(AF_INET, SOCK_DGRAM, 0), got;
	struct timeval patience = { .tv_sec = DEADLINE_S };
	double from, cpu = 0, end;
	long count = 0;

	if (fd < 0 || (listens ? bind : connect)(fd, (struct sockaddr *)&where, sizeof(where)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		die("a UDP socket");
	fill(messages, data, bytes);
	if (!listens) {
		for (end = now() + WARM_S + seconds + DEADLINE_S; now() < end;)
			if (sendmmsg(fd, messages, DATAGRAMS, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
				die("sendmmsg");
		return 0;
	}
	up();
	if (recv(fd, bytes[0], DATAGRAM, 0) < 0)
		die("a datagram");
	for (end = now() + WARM_S; now() < end;)
		if (recvmmsg(fd, messages, DATAGRAMS, MSG_WAITFORONE, NULL) < 0)
			die("recvmmsg");
	for (from = now(), cpu = busy(); now() - from < seconds; count += got)
		if ((got = recvmmsg(fd, messages, DATAGRAMS, MSG_WAITFORONE, NULL)) < 0)
			die("recvmmsg");
	printf("{\"count\": %ld, \"seconds\": %.6f, \"busy_s\": %.2f}\n", count, now() - from, busy() - cpu);
	return 0;
}

/* ring */

static char *map_ring(int fd)
{
	struct tpacket_req ring = { .tp_block_size = RING_BLOCK,
				    .tp_block_nr = RING_FRAMES * RING_FRAME / RING_BLOCK,
				    .tp_frame_size = RING_FRAME,
				    .tp_frame_nr = RING_FRAMES };
	char *mapped;

	set(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
	set(fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1);
	if (setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &ring, sizeof(ring)))
		die("PACKET_TX_RING");
	mapped = mmap(NULL, RING_FRAMES * RING_FRAME, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		die("mmap");
	return mapped;
}

static int unhex(const char *text, unsigned char *frame)
{
	int length = strlen(text) / 2;

	for (int i = 0; i < length && i < RING_FRAME / 2; i++)
		if (sscanf(text + 2 * i, "%2hhx", &frame[i]) != 1)
			die("the frame");
	return length;
}

/* Flow number n has other ports than any other of the first million. */
static void give_ports(unsigned char *frame, unsigned long n)
{
	unsigned short ports[2] = { htons(20000 + n % FLOW_PORTS), htons(20000 + n / FLOW_PORTS % FLOW_PORTS) };

	memcpy(frame + UDP_PORTS, ports, sizeof(ports));
}

/* Fills the whole ring from flow number n on, and waits until all of it is sent. A device whose queue is full is asked
 * again, until then. */
static void send_ring(int fd, char *mapped, int length, unsigned long flows, unsigned long n, double until)
{
	for (int i = 0; i < RING_FRAMES; i++) {
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)(mapped + i * RING_FRAME);

		if (flows > 1)
			give_ports((unsigned char *)header + RING_DATA, n + i);
		header->tp_len = length;
		__atomic_store_n(&header->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
	}
	while (send(fd, NULL, 0, 0) < 0 && now() < until)
		if (errno != ENOBUFS)
			die("sending");
}

static int ring(const char *interface, const char *hex, double seconds, unsigned long frames, unsigned long flows,
		unsigned long first)
{
	struct sockaddr_ll where = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(interface) };
	int fd = socket(AF_PACKET, SOCK_RAW, 0), length;
	unsigned char frame[RING_FRAME];
	unsigned long sent = 0;
	double from, cpu;
	char *mapped;

	if (fd < 0)
		die("socket");
	mapped = map_ring(fd);
	if (!where.sll_ifindex || bind(fd, (struct sockaddr *)&where, sizeof(where)))
		die(interface);
	length = unhex(hex, frame);
	for (int i = 0; i < RING_FRAMES; i++)
		memcpy(mapped + i * RING_FRAME + RING_DATA, frame, length);
	for (from = now(), cpu = busy(); now() - from < seconds && (!frames || sent < frames); sent += RING_FRAMES)
		send_ring(fd, mapped, length, flows, first + sent % flows, from + seconds);
	printf("{\"sent\": %lu, \"seconds\": %.6f, \"busy_s\": %.2f}\n", sent, now() - from, busy() - cpu);
	return 0;
}

static int run(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	bool listens = argc > 2 && !strcmp(argv[2], "listen");

	if (argc == 8 && !strcmp(mode, "ring") && atol(argv[6]) > 0)
		return ring(argv[2], argv[3], atof(argv[4]), atol(argv[5]), atol(argv[6]), atol(argv[7]));
	if (argc == 8 && !strcmp(mode, "stream") && atoi(argv[6]) > 0 && atoi(argv[6]) <= STREAMS)
		return stream(listens, at(argv[3], argv[4]), !strcmp(argv[5], "send"), atoi(argv[6]), atof(argv[7]));
	if (argc == 6 && !strcmp(mode, "rr"))
		return rr(listens, at(argv[3], argv[4]), atof(argv[5]));
	if (argc == 6 && !strcmp(mode, "udp"))
		return udp(listens, at(argv[3], argv[4]), atof(argv[5]));
	if (argc == 7 && !strcmp(mode, "new"))
		return listens ? accept_and_close(at(argv[3], argv[4]), !strcmp(argv[6], "reset")) :
				 connect_and_close(at(argv[3], argv[4]), atof(argv[5]), !strcmp(argv[6], "reset"));
	fprintf(stderr, "usage: see the head of load.c\n");
	return 2;
}

int main(int argc, char **argv)
{
	int status;

	spawn(end_with_input, NULL);
	status = run(argc, argv);
	fflush(stdout);
	_exit(status);
}
