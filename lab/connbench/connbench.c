// SPDX-License-Identifier: Apache-2.0
/*
 * connbench: how long connect(2) takes.
 *
 * connbench serve ADDRESS PORT accepts and closes until killed. connbench connect ADDRESS PORT
 * COUNT prints one number a line: the ns of each connect(). Connections are reset (SO_LINGER 0), so
 * that no TIME_WAIT fills the port range. Client and server are two processes so that each can be
 * in a cgroup of its own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
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

static int new_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("make a socket");
	return fd;
}

static long long connect_once(const struct sockaddr_in *to)
{
	int fd = new_socket();
	long long began = now_ns();
	long long took;

	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		fail("connect");
	took = now_ns() - began;
	close_reset(fd);
	return took;
}

static void serve(const struct sockaddr_in *at)
{
	int listener = new_socket();
	int one = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const struct sockaddr *)at, sizeof(*at)) || listen(listener, 4096))
		fail("listen");
	for (;;) {
		int peer = accept(listener, NULL, NULL);
		char byte;

		/*
		 * The client ends it: a reset of ours could come before its connect() has returned.
		 */
		if (peer >= 0 && recv(peer, &byte, 1, 0) <= 0)
			close(peer);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	bool serving = argc == 4 && !strcmp(argv[1], "serve");
	bool connecting = argc == 5 && !strcmp(argv[1], "connect");

	if (!(serving || connecting) || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1) {
		fprintf(stderr, "usage: connbench serve ADDRESS PORT | connbench connect ADDRESS "
				"PORT COUNT\n");
		return 2;
	}
	address.sin_port = htons((uint16_t)atoi(argv[3]));
	if (serving)
		serve(&address);
	for (long i = atol(argv[4]); i > 0; i--)
		printf("%lld\n", connect_once(&address));
	return 0;
}
