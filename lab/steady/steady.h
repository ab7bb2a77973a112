/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steady.h: what steady.c and datagrams.c share: messages, who sends them, and the lines that tell
 * of them. They define _GNU_SOURCE.
 */
#ifndef LAB_STEADY_H
#define LAB_STEADY_H

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../tcpclock.h"

#define NEVER UINT64_MAX

enum { DATAGRAM_BYTES = 65507 }; /* the most that one carries over IPv4 */

/* What a message begins with, in the order of this machine's bytes */
struct head {
	uint32_t connection;
	uint32_t number;
	uint64_t due_ns;
};

struct conn {
	int fd;
	uint32_t id;
	bool connected, writing, ended;
	uint32_t events;	     /* that epoll is asked for */
	uint64_t began_ns, first_ns; /* connect(); when its first message is due */
	uint64_t due_ns;	     /* of message `number`, or NEVER while an answer is awaited */
	uint32_t number, got;
	size_t sent;  /* of message `number` */
	size_t taken; /* of the message that comes in */
	uint8_t *in;
	bool *came; /* of datagrams: which are back */
};

struct plan {
	uint32_t connections, messages;
	size_t bytes;
	uint64_t interval_ns, wait_ns;
	bool answered;	/* by an echo, not to a sink */
	bool datagrams; /* a socket of UDP is a connection */
};

extern struct plan plan;

/* "steady: cannot WHAT: errno's text", and the end */
void fail(const char *what);

/* The connection has failed */
void give_up(struct conn *conn, const char *why);

/* All that can come has come */
void end(struct conn *conn);

/* Whether the plan.bytes of conn->in are a message of this connection, byte by byte; its head */
bool take_answer(const struct conn *conn, struct head *head);

/* It is here */
void tell_message(const struct head *head);

/* ---- datagrams.c ---- */

/* Sends back what it gets, until killed */
void echo_datagrams(const struct sockaddr_in *at);

/* What is here of the answers to a connection's */
void read_datagrams(struct conn *conn);

#endif /* LAB_STEADY_H */
