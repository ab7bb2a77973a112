// SPDX-License-Identifier: Apache-2.0
/*
 * holdconn: opens many connections to an echo server ("pingpong serve"), holds them, and does with
 * all of them what it is told, one word a line on stdin:
 *
 * open: connect them. check: send a byte on each, which the server must send back. close: end them
 * in order, and wait for the server to do the same. reset: end them by RST, which leaves no
 * TIME_WAIT, all at once.
 *
 * usage: holdconn ADDRESS PORT COUNT IN_FLIGHT. At most IN_FLIGHT connections are being opened,
 * checked or closed at a time. Each word is answered by a line: the word, how many connections did
 * it, how many did not, when it began and ended (CLOCK_MONOTONIC, ns), and the first error's name
 * or "-". The end of stdin ends the program.
 *
 * Invariant: an open connection is watched only while something is expected of it (EPOLLONESHOT),
 * so that holding it costs nothing here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, OTHER_DESCRIPTORS = 16 };

struct held {
	struct sockaddr_in to;
	int epoll;
	int *fd; /* -1: not open */
	size_t count;
	size_t in_flight;
	size_t checks; /* made so far; what is sent differs from check to check */
};

struct outcome {
	size_t done, failed;
	int error; /* of the first that failed */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "holdconn: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static void failed(struct outcome *outcome, int error)
{
	if (!outcome->failed++)
		outcome->error = error;
}

static bool watch(const struct held *held, size_t i, int op, uint32_t events)
{
	struct epoll_event event = {.events = events | EPOLLONESHOT, .data.u64 = i};

	return !epoll_ctl(held->epoll, op, held->fd[i], &event);
}

static uint8_t byte_of(const struct held *held, size_t i)
{
	return (uint8_t)(i * 167 + held->checks * 41 + (i >> 8));
}

static void drop(struct held *held, size_t i)
{
	close(held->fd[i]);
	held->fd[i] = -1;
}

/* ---- what begins, and what ends, on one connection; 0 or an errno ---- */

static int open_begin(struct held *held, size_t i)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1;

	if (fd < 0)
		return errno;
	held->fd[i] = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (const struct sockaddr *)&held->to, sizeof(held->to)) &&
	    errno != EINPROGRESS)
		return errno;
	return watch(held, i, EPOLL_CTL_ADD, EPOLLOUT) ? 0 : errno;
}

static int open_end(struct held *held, size_t i)
{
	socklen_t len = sizeof(int);
	int error = 0;

	return getsockopt(held->fd[i], SOL_SOCKET, SO_ERROR, &error, &len) ? errno : error;
}

static int check_begin(struct held *held, size_t i)
{
	uint8_t byte = byte_of(held, i);

	if (held->fd[i] < 0)
		return ENOTCONN;
	if (send(held->fd[i], &byte, 1, MSG_NOSIGNAL) != 1)
		return errno;
	return watch(held, i, EPOLL_CTL_MOD, EPOLLIN) ? 0 : errno;
}

static int check_end(struct held *held, size_t i)
{
	uint8_t got[2];
	ssize_t n = recv(held->fd[i], got, sizeof(got), 0);

	if (n < 0)
		return errno;
	if (n == 0)
		return ECONNRESET;
	return n == 1 && got[0] == byte_of(held, i) ? 0 : EBADMSG;
}

static int close_begin(struct held *held, size_t i)
{
	if (held->fd[i] < 0)
		return ENOTCONN;
	if (shutdown(held->fd[i], SHUT_WR))
		return errno;
	return watch(held, i, EPOLL_CTL_MOD, EPOLLIN) ? 0 : errno;
}

static int close_end(struct held *held, size_t i)
{
	uint8_t byte;
	ssize_t n = recv(held->fd[i], &byte, 1, 0);

	if (n < 0)
		return errno;
	if (n > 0)
		return EBADMSG;
	drop(held, i);
	return 0;
}

/* ---- all of them ---- */

struct task {
	int (*begin)(struct held *held, size_t i);
	int (*end)(struct held *held, size_t i);
};

static void finish(struct held *held, const struct task *task, struct outcome *outcome,
		   size_t *running)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(held->epoll, events, EVENTS, -1);

	for (int e = 0; e < n; e++) {
		size_t i = (size_t)events[e].data.u64;
		int error = task->end(held, i);

		--*running;
		if (!error) {
			outcome->done++;
			continue;
		}
		failed(outcome, error);
		if (held->fd[i] >= 0)
			drop(held, i);
	}
}

static struct outcome run(struct held *held, const struct task *task)
{
	struct outcome outcome = {0};
	size_t running = 0;

	for (size_t i = 0; i < held->count || running;) {
		while (i < held->count && running < held->in_flight) {
			int error = task->begin(held, i);

			if (!error) {
				running++;
			} else {
				failed(&outcome, error);
				if (held->fd[i] >= 0)
					drop(held, i);
			}
			i++;
		}
		if (running)
			finish(held, task, &outcome, &running);
	}
	return outcome;
}

static struct outcome reset_all(struct held *held)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};
	struct outcome outcome = {0};

	for (size_t i = 0; i < held->count; i++) {
		if (held->fd[i] < 0)
			continue;
		setsockopt(held->fd[i], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		drop(held, i);
		outcome.done++;
	}
	return outcome;
}

static bool obey(struct held *held, const char *word)
{
	static const struct task opening = {open_begin, open_end},
				 checking = {check_begin, check_end},
				 closing = {close_begin, close_end};
	uint64_t began = now_ns();
	struct outcome outcome;

	if (!strcmp(word, "open")) {
		outcome = run(held, &opening);
	} else if (!strcmp(word, "check")) {
		outcome = run(held, &checking);
		held->checks++;
	} else if (!strcmp(word, "close")) {
		outcome = run(held, &closing);
	} else if (!strcmp(word, "reset")) {
		outcome = reset_all(held);
	} else {
		return false;
	}
	printf("%s %zu %zu %llu %llu %s\n", word, outcome.done, outcome.failed,
	       (unsigned long long)began, (unsigned long long)now_ns(),
	       outcome.failed ? strerrorname_np(outcome.error) : "-");
	fflush(stdout);
	return true;
}

static void allow_descriptors(size_t wanted)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		fail("read the limit of open files");
	if (limit.rlim_cur < wanted)
		limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail("raise the limit of open files");
}

int main(int argc, char **argv)
{
	struct held held = {.to = {.sin_family = AF_INET}};
	char line[64];

	if (argc == 5) {
		held.to.sin_port = htons((uint16_t)atoi(argv[2]));
		held.count = strtoul(argv[3], NULL, 10);
		held.in_flight = strtoul(argv[4], NULL, 10);
	}
	if (argc != 5 || inet_pton(AF_INET, argv[1], &held.to.sin_addr) != 1 || !held.count ||
	    !held.in_flight) {
		fprintf(stderr, "usage: holdconn ADDRESS PORT COUNT IN_FLIGHT\n");
		return 2;
	}
	allow_descriptors(held.count + OTHER_DESCRIPTORS);
	held.epoll = epoll_create1(EPOLL_CLOEXEC);
	held.fd = malloc(held.count * sizeof(*held.fd));
	if (held.epoll < 0 || !held.fd)
		fail("begin");
	memset(held.fd, 0xff, held.count * sizeof(*held.fd));
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!obey(&held, line)) {
			fprintf(stderr, "holdconn: there is no command %s\n", line);
			return 2;
		}
	}
	free(held.fd);
	return 0;
}
