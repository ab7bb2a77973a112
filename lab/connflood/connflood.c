// SPDX-License-Identifier: Apache-2.0
/*
 * connflood: calls connect(2) as fast as the machine can, and holds what it has begun.
 *
 * usage: connflood ADDRESS STRIDE SPAN PORT. Peers are ADDRESS + k * STRIDE, k < SPAN, where of
 *IPv6 a stride counts /64s, in an order that jumps about, so that what is kept of the last ones is
 *of no use where SPAN is large. Nobody need answer: sockets do not block, and a connect() that
 *waits for its peer (EINPROGRESS) has been decided about. Words on stdin, a line each:
 *
 *	open COUNT  so many connect() calls. Answer: "open DONE FAILED BEGAN ENDED MEDIAN ERROR":
 *		    begin and end by CLOCK_MONOTONIC and the median of a call, in ns; the first
 *		    error's name or "-"
 *	tell        of each socket that is held a line "COOKIE PRIORITY", its SO_COOKIE and its
 *		    SO_PRIORITY; then "told COUNT"
 *	close       ends them. Answer: "close COUNT"
 *
 * The end of stdin ends the program.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdbool.h>
#include <unistd.h>

#include "../tcpclock.h"

#define STEP 0x9e3779b1U /* odd, so that k * STEP comes by every number below a power of two */

struct flood {
	struct sockaddr_storage peer; /* the first one */
	socklen_t peer_bytes;
	uint32_t first; /* the word of its address that strides are added to */
	uint32_t stride, span;
	uint32_t turn; /* connect() calls so far */
	int *fds;
	uint64_t *took_ns;
	size_t held, room;
};

static void fail(const char *what)
{
	fail_as("connflood", what);
}

/* Where strides are added to an address: to all of IPv4's, to the end of a /64 of IPv6's */
static uint32_t *word_of(struct sockaddr_storage *peer)
{
	if (peer->ss_family == AF_INET)
		return &((struct sockaddr_in *)peer)->sin_addr.s_addr;
	return &((struct sockaddr_in6 *)peer)->sin6_addr.s6_addr32[1];
}

static bool set_first(struct flood *flood, const char *address, in_port_t port_be)
{
	struct sockaddr_in *four = (struct sockaddr_in *)&flood->peer;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&flood->peer;

	if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = port_be;
		flood->peer_bytes = sizeof(*four);
	} else if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = port_be;
		flood->peer_bytes = sizeof(*six);
	} else {
		return false;
	}
	flood->first = ntohl(*word_of(&flood->peer));
	return true;
}

static void next_peer(struct flood *flood)
{
	uint32_t k = flood->turn++ * STEP;

	k = (uint32_t)((uint64_t)k * flood->span >> 32);
	*word_of(&flood->peer) = htonl(flood->first + k * flood->stride);
}

static void make_room(struct flood *flood, size_t count)
{
	if (flood->held + count <= flood->room)
		return;
	flood->room = flood->held + count;
	flood->fds = realloc(flood->fds, flood->room * sizeof(*flood->fds));
	flood->took_ns = realloc(flood->took_ns, flood->room * sizeof(*flood->took_ns));
	if (!flood->fds || !flood->took_ns)
		fail("remember its sockets");
}

/* 0, or an errno */
static int connect_once(struct flood *flood, uint64_t *took_ns)
{
	int type = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, error = 0;
	int fd = socket(flood->peer.ss_family, type, 0);
	uint64_t began;

	if (fd < 0)
		return errno;
	next_peer(flood);
	began = now_ns();
	if (connect(fd, (struct sockaddr *)&flood->peer, flood->peer_bytes) && errno != EINPROGRESS)
		error = errno;
	*took_ns = now_ns() - began;
	if (error)
		close(fd);
	else
		flood->fds[flood->held++] = fd;
	return error;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void open_all(struct flood *flood, size_t count)
{
	uint64_t began = now_ns(), ended, median = 0;
	size_t done = 0;
	int first = 0;

	make_room(flood, count);
	for (size_t i = 0; i < count; i++) {
		int error = connect_once(flood, &flood->took_ns[done]);

		done += !error;
		first = first ? first : error;
	}
	ended = now_ns();
	qsort(flood->took_ns, done, sizeof(*flood->took_ns), by_size);
	if (done)
		median = flood->took_ns[done / 2];
	printf("open %zu %zu %llu %llu %llu %s\n", done, count - done, (unsigned long long)began,
	       (unsigned long long)ended, (unsigned long long)median,
	       first ? strerrorname_np(first) : "-");
}

static void tell_one(int fd)
{
	uint64_t cookie = 0;
	int priority = 0;
	socklen_t cookie_len = sizeof(cookie), priority_len = sizeof(priority);

	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &cookie_len) ||
	    getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, &priority_len))
		fail("read what a socket has");
	printf("%llu %d\n", (unsigned long long)cookie, priority);
}

static void obey(struct flood *flood, const char *line)
{
	size_t count;

	if (sscanf(line, "open %zu", &count) == 1) {
		open_all(flood, count);
	} else if (!strcmp(line, "tell\n")) {
		for (size_t i = 0; i < flood->held; i++)
			tell_one(flood->fds[i]);
		printf("told %zu\n", flood->held);
	} else if (!strcmp(line, "close\n")) {
		for (size_t i = 0; i < flood->held; i++)
			close(flood->fds[i]);
		printf("close %zu\n", flood->held);
		flood->held = 0;
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct flood flood = {};
	char line[64];

	if (argc != 5 || !set_first(&flood, argv[1], htons((uint16_t)strtoul(argv[4], NULL, 10)))) {
		fprintf(stderr, "usage: connflood ADDRESS STRIDE SPAN PORT\n");
		return 2;
	}
	flood.stride = (uint32_t)strtoul(argv[2], NULL, 10);
	flood.span = (uint32_t)strtoul(argv[3], NULL, 10);
	allow_descriptors("connflood");
	while (fgets(line, sizeof(line), stdin))
		obey(&flood, line);
	return 0;
}
