// SPDX-License-Identifier: Apache-2.0
/*
 * connflood: calls connect(2) as fast as the machine can, and holds what it has begun.
 *
 * usage: connflood ADDRESS STRIDE SPAN PORT. Peers are ADDRESS + k * STRIDE, k < SPAN, in an order
 * that jumps about, so that what is kept of the last ones is of no use where SPAN is large. Nobody
 * need answer: sockets do not block, and a connect() that waits for its peer (EINPROGRESS) has been
 * decided about. Words on stdin, a line each:
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
#include <unistd.h>

#include "../tcpclock.h"

#define STEP 0x9e3779b1U /* odd, so that k * STEP comes by every number below a power of two */

struct flood {
	struct in_addr first;
	uint32_t stride, span;
	in_port_t port_be;
	uint32_t turn; /* connect() calls so far */
	int *fds;
	uint64_t *took_ns;
	size_t held, room;
};

static void fail(const char *what)
{
	fail_as("connflood", what);
}

static struct sockaddr_in next_peer(struct flood *flood)
{
	uint32_t k = flood->turn++ * STEP;
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = flood->port_be};

	k = (uint32_t)((uint64_t)k * flood->span >> 32);
	to.sin_addr.s_addr = htonl(ntohl(flood->first.s_addr) + k * flood->stride);
	return to;
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
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;
	struct sockaddr_in to = next_peer(flood);
	uint64_t began;

	if (fd < 0)
		return errno;
	began = now_ns();
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
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

	if (argc != 5 || inet_pton(AF_INET, argv[1], &flood.first) != 1) {
		fprintf(stderr, "usage: connflood ADDRESS STRIDE SPAN PORT\n");
		return 2;
	}
	flood.stride = (uint32_t)strtoul(argv[2], NULL, 10);
	flood.span = (uint32_t)strtoul(argv[3], NULL, 10);
	flood.port_be = htons((uint16_t)strtoul(argv[4], NULL, 10));
	allow_descriptors("connflood");
	while (fgets(line, sizeof(line), stdin))
		obey(&flood, line);
	return 0;
}
