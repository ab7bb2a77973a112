/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcpclock.h: what the programs that time a TCP connection share: the clock, the end of a program
 * with a sentence, sending at once, and many connections. They define _GNU_SOURCE.
 */
#ifndef LAB_TCPCLOCK_H
#define LAB_TCPCLOCK_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "../dmm_ebpf/userstack/core/units.h"

/* CLOCK_MONOTONIC */
static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* "PROGRAM: cannot WHAT: errno's text", and the program ends with 1. program: without the digest
 * that its file's name has. */
static inline void fail_as(const char *program, const char *what)
{
	fprintf(stderr, "%s: cannot %s: %s\n", program, what, strerror(errno));
	exit(1);
}

/* Whether TCP_NODELAY could be set */
static inline bool no_delay_set(int fd)
{
	int one = 1;

	return !setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* As many connections as the system lets it have */
static inline void allow_descriptors(const char *program)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		fail_as(program, "read the limit of open files");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail_as(program, "raise the limit of open files");
}

#endif /* LAB_TCPCLOCK_H */
