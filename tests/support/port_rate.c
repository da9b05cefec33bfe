/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Opens and closes TCP connections at a pace, and serves those of another.
 *
 *   port_rate serve PORT client|server           until its standard input ends
 *   port_rate open ADDRESS PORT RATE COUNT client|server
 *
 * The last word says who closes first, and so who is left in TIME_WAIT. Both ends must be told the same.
 * `open` starts a connection every 1/RATE seconds until COUNT were started, catching up if it was held up,
 * but never with more than IN_FLIGHT at a time. It fails a connection whose connect or close the kernel
 * reports an error for, or that takes TIMEOUT_S. Each prints one line of JSON at its end; latencies are from
 * connect() to the handshake's end, in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_FLIGHT 256
#define TIMEOUT_S 20
#define FDS 4096
#define EVENTS 128

enum phase { CLOSED, CONNECTING, WAITING }; /* WAITING: connected, and the server is to close first */

struct connection {
	enum phase phase;
	double since;
};

static struct connection connections[FDS];
static double *latencies;
static long started, connected, finished, failed;
static int last_error;
static bool server_first;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int epoll, int fd, unsigned events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

/* The server: what it has accepted it closes at once, or when the other end has. */

static void accept_all(int listener, int epoll, long *accepted)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		++*accepted;
		if (server_first)
			close(fd);
		else
			watch(epoll, fd, EPOLLIN | EPOLLRDHUP);
	}
	if (errno != EAGAIN && errno != ECONNABORTED)
		die("accept");
}

static int listen_on(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4096))
		die("listen");
	return fd;
}

static int serve(int port)
{
	int listener = listen_on(port), epoll = epoll_create1(0), count;
	struct epoll_event events[EVENTS];
	long accepted = 0;

	watch(epoll, listener, EPOLLIN);
	watch(epoll, STDIN_FILENO, EPOLLIN);
	printf("up\n");
	fflush(stdout);
	while ((count = epoll_wait(epoll, events, EVENTS, -1)) >= 0 || errno == EINTR)
		for (int i = 0; i < count; i++) {
			if (events[i].data.fd == listener)
				accept_all(listener, epoll, &accepted);
			else if (events[i].data.fd != STDIN_FILENO)
				close(events[i].data.fd);
			else
				return printf("{\"accepted\": %ld, \"cpu_s\": %.2f}\n", accepted, cpu_seconds()) < 0;
		}
	die("epoll_wait");
	return 1;
}

/* The client. */

static void end(int fd, int error)
{
	connections[fd].phase = CLOSED;
	close(fd);
	finished++;
	if (error) {
		failed++;
		last_error = error;
	}
}

static void start_one(int epoll, const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0 || fd >= FDS)
		die("socket");
	started++;
	connections[fd] = (struct connection){ CONNECTING, now() };
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		end(fd, errno);
	else
		watch(epoll, fd, EPOLLOUT);
}

static void handle(int epoll, int fd)
{
	int error = 0;
	socklen_t size = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error || connections[fd].phase == WAITING) {
		end(fd, error);
		return;
	}
	latencies[connected++] = now() - connections[fd].since;
	connections[fd].phase = WAITING;
	if (server_first)
		watch(epoll, fd, EPOLLIN | EPOLLRDHUP);
	else
		end(fd, 0);
}

static void give_up_on_late(void)
{
	static double looked;

	if (now() - looked < 1)
		return;
	looked = now();
	for (int fd = 0; fd < FDS; fd++)
		if (connections[fd].phase != CLOSED && looked - connections[fd].since > TIMEOUT_S)
			end(fd, ETIMEDOUT);
}

static int ascending(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return (difference > 0) - (difference < 0);
}

static double quantile_us(double q)
{
	return connected ? latencies[(long)(q * (connected - 1))] * 1e6 : 0;
}

static void report(double began)
{
	double seconds = now() - began;
	long slow = 0;

	qsort(latencies, connected, sizeof(*latencies), ascending);
	while (slow < connected && latencies[connected - 1 - slow] >= 1)
		slow++;
	printf("{\"started\": %ld, \"connected\": %ld, \"failed\": %ld, \"error\": \"%s\", \"seconds\": %.2f, "
	       "\"per_s\": %.0f, \"p50_us\": %.0f, \"p99_us\": %.0f, \"max_us\": %.0f, \"slower_than_1_s\": %ld, "
	       "\"cpu_s\": %.2f}\n",
	       started, connected, failed, last_error ? strerror(last_error) : "", seconds, started / seconds,
	       quantile_us(0.5), quantile_us(0.99), quantile_us(1), slow, cpu_seconds());
}

static int open_all(const char *address, int port, double rate, long total)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int epoll = epoll_create1(0), count;
	struct epoll_event events[EVENTS];
	double began = now();

	latencies = calloc(total, sizeof(*latencies));
	if (!latencies || inet_pton(AF_INET, address, &to.sin_addr) != 1)
		die("arguments");
	while (finished < total) {
		while (started < total && started - finished < IN_FLIGHT && started < (now() - began) * rate)
			start_one(epoll, &to);
		count = epoll_wait(epoll, events, EVENTS, 1);
		for (int i = 0; i < count; i++)
			handle(epoll, events[i].data.fd);
		give_up_on_late();
	}
	report(began);
	return 0;
}

int main(int argc, char **argv)
{
	server_first = !strcmp(argv[argc - 1], "server");
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]));
	if (argc == 7 && !strcmp(argv[1], "open"))
		return open_all(argv[2], atoi(argv[3]), atof(argv[4]), atol(argv[5]));
	fprintf(stderr, "usage: %s serve PORT client|server | open ADDRESS PORT RATE COUNT client|server\n", argv[0]);
	return 2;
}
