// SPDX-License-Identifier: Apache-2.0
/*
 * connbench: how long connect(2) takes, on loopback, to a listener of this process.
 *
 * connbench ADDRESS PORT COUNT prints one number a line: the ns of each connect(). The accepted socket and
 * the connecting one are reset (SO_LINGER 0), so that no TIME_WAIT fills the port range.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "connbench: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static void close_reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

static long long connect_once(int listener, const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	long long began, took;
	int peer;

	if (fd < 0)
		fail("make a socket");
	began = now_ns();
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		fail("connect");
	took = now_ns() - began;
	peer = accept(listener, NULL, NULL);
	if (peer < 0)
		fail("accept");
	close_reset(peer);
	close_reset(fd);
	return took;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	long count;
	int one = 1;
	int listener;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
		fprintf(stderr, "usage: connbench ADDRESS PORT COUNT\n");
		return 2;
	}
	to.sin_port = htons((uint16_t)atoi(argv[2]));
	count = atol(argv[3]);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0)
		fail("make a socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const struct sockaddr *)&to, sizeof(to)) || listen(listener, 16))
		fail("listen");
	for (long i = 0; i < count; i++)
		printf("%lld\n", connect_once(listener, &to));
	return 0;
}
