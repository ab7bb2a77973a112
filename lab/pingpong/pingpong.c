// SPDX-License-Identifier: Apache-2.0
/*
 * pingpong: how long a request and its answer take, on one connection or on a new one each.
 *
 * pingpong serve ADDRESS PORT sends back what it gets, on as many connections as it may have open,
 * until killed. pingpong rr ADDRESS PORT SECONDS BYTES: one connection, one request of BYTES after
 * the other. pingpong crr ADDRESS PORT SECONDS BYTES: connect, one request, its answer, reset
 * (SO_LINGER 0, so that no TIME_WAIT fills the port range); the time of a transaction is from
 * connect() to the answer. Both print one line: transactions, elapsed ns, and their median and 99th
 * percentile in ns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tcpclock.h"

enum { MAX_BYTES = 16384, MAX_SAMPLES = 8 << 20, EVENTS = 64 };

static char buffer[MAX_BYTES];

static void fail(const char *what)
{
	fail_as("pingpong", what);
}

static void no_delay(int fd)
{
	if (!no_delay_set(fd))
		fail("set TCP_NODELAY");
}

static bool send_all(int fd, size_t bytes)
{
	for (size_t sent = 0; sent < bytes;) {
		ssize_t n = send(fd, buffer + sent, bytes - sent, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		sent += (size_t)n;
	}
	return true;
}

/* ---- server ---- */

static void watch(int epoll, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		fail("watch a socket");
}

/*
 * Requests fit the socket's buffer, and a client waits for its answer: a blocking
 * send() cannot block.
 */
static void echo(int fd)
{
	ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

	if (n <= 0 || !send_all(fd, (size_t)n))
		close(fd);
}

static void serve(const struct sockaddr_in *at)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int one = 1;

	if (listener < 0 || epoll < 0)
		fail("make a socket");
	allow_descriptors("pingpong");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const struct sockaddr *)at, sizeof(*at)) || listen(listener, 4096))
		fail("listen");
	watch(epoll, listener);
	for (;;) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (fd != listener) {
				echo(fd);
			} else if ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
				no_delay(fd);
				watch(epoll, fd);
			}
		}
	}
}

/* ---- client ---- */

static int connect_to(const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("make a socket");
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		fail("connect");
	no_delay(fd);
	return fd;
}

static void exchange(int fd, size_t bytes)
{
	if (!send_all(fd, bytes))
		fail("send a request");
	for (size_t got = 0; got < bytes;) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

		if (n == 0)
			errno = ECONNRESET;
		if (n <= 0)
			fail("receive an answer");
		got += (size_t)n;
	}
}

static void close_reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void measure(const struct sockaddr_in *to, bool fresh, double seconds, size_t bytes)
{
	uint64_t *samples = malloc(MAX_SAMPLES * sizeof(*samples));
	uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9), before, after;
	size_t n = 0;
	int fd = fresh ? -1 : connect_to(to);

	if (!samples)
		fail("keep samples");
	do {
		before = now_ns();
		if (fresh)
			fd = connect_to(to);
		exchange(fd, bytes);
		after = now_ns();
		if (fresh)
			close_reset(fd);
		samples[n++] = after - before;
	} while (after < end && n < MAX_SAMPLES);
	qsort(samples, n, sizeof(*samples), by_value);
	printf("%zu %llu %llu %llu\n", n, (unsigned long long)(after - began),
	       (unsigned long long)samples[n / 2], (unsigned long long)samples[n - 1 - n / 100]);
	free(samples);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	bool serving = argc == 4 && !strcmp(argv[1], "serve");
	bool asking = argc == 6 && (!strcmp(argv[1], "rr") || !strcmp(argv[1], "crr"));
	long bytes = asking ? atol(argv[5]) : 1;

	if (!(serving || asking) || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1 ||
	    bytes < 1 || bytes > MAX_BYTES) {
		fprintf(stderr, "usage: pingpong serve ADDRESS PORT | "
				"pingpong rr|crr ADDRESS PORT SECONDS BYTES(1 to 16384)\n");
		return 2;
	}
	address.sin_port = htons((uint16_t)atoi(argv[3]));
	if (serving)
		serve(&address);
	measure(&address, !strcmp(argv[1], "crr"), atof(argv[4]), (size_t)bytes);
	return 0;
}
