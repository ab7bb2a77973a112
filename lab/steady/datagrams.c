// SPDX-License-Identifier: Apache-2.0
/*
 * datagrams.c: messages as datagrams, their echo and their answers, which come in any order or not
 * at all, and never twice.
 */
#define _GNU_SOURCE
#include "steady.h"

void echo_datagrams(const struct sockaddr_in *at)
{
	static uint8_t buffer[DATAGRAM_BYTES];
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)at, sizeof(*at)))
		fail("take datagrams");
	for (;;) {
		struct sockaddr_in from;
		socklen_t len = sizeof(from);
		ssize_t n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &len);

		if (n < 0)
			fail("take a datagram");
		/* What cannot be sent is lost, as on the way */
		(void)sendto(fd, buffer, (size_t)n, 0, (const struct sockaddr *)&from, len);
	}
}

static void answered(struct conn *conn)
{
	struct head head;

	if (!take_answer(conn, &head) || head.number >= conn->number) {
		give_up(conn, "bytes");
		return;
	}
	if (conn->came[head.number]) {
		give_up(conn, "twice");
		return;
	}
	conn->came[head.number] = true;
	tell_message(&head);
	if (++conn->got == plan.messages)
		end(conn);
}

void read_datagrams(struct conn *conn)
{
	ssize_t n;

	while (!conn->ended && (n = recv(conn->fd, conn->in, plan.bytes, MSG_TRUNC)) >= 0) {
		if ((size_t)n == plan.bytes)
			answered(conn);
		else
			give_up(conn, "bytes");
	}
	if (!conn->ended && errno != EAGAIN)
		give_up(conn, strerrorname_np(errno));
}
