// SPDX-License-Identifier: Apache-2.0
/*
 * steady: messages at a steady pace on many connections at once, and how long each takes to its
 * last byte.
 *
 * steady echo ADDRESS PORT sends back what it gets, until killed.
 * steady sink ADDRESS PORT BYTES takes messages of BYTES and tells of each, until killed.
 * steady ask ADDRESS PORT CONNECTIONS MESSAGES BYTES INTERVAL_US WAIT_S sends them to an echo:
 * every connection one message each INTERVAL_US, the connections one after another within that
 * time; INTERVAL_US 0: the next one when the answer to the last is here.
 * steady send, with the same words, sends them to a sink.
 * Both give up what has not ended WAIT_S after it should have been sent.
 * steady echo-datagrams and ask-datagrams, with the words of echo and ask, do it by UDP, each
 * message a datagram, INTERVAL_US not 0: what is not back by then is lost, which is no failure.
 *
 * A message begins with struct head and carries the time when it was due, so that what waits in a
 * sender counts; what follows is made from the head, and an answer must be that, byte by byte. Both
 * hosts read one CLOCK_MONOTONIC, being namespaces of one kernel. Lines on stdout, times in ns:
 *
 *	c CONNECTION TOOK           connect() is done
 *	m CONNECTION NUMBER TOOK    the message, or its answer, is here
 *	e CONNECTION TOOK           all is answered, lost, or sent and acknowledged; since connect()
 *	f CONNECTION WHY            it failed: an errno's name, "time", "bytes" (not those sent),
 *	                            "twice" (an answer that is a datagram)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "steady.h"

enum {
	MAX_BYTES = 1 << 20,
	TOLD_BYTES = 1 << 28,
	CHUNK_BYTES = 1 << 16,
	EVENTS = 64,
	BACKLOG = 4096
};

void fail(const char *what)
{
	fail_as("steady", what);
}

static void no_delay(int fd)
{
	if (!no_delay_set(fd))
		fail("set TCP_NODELAY");
}

static void watch(int epoll, int fd, void *what, uint32_t events, int how)
{
	struct epoll_event event = {.events = events, .data.ptr = what};

	if (epoll_ctl(epoll, how, fd, &event))
		fail("watch a socket");
}

/* ---- servers ---- */

struct guest {
	int fd;
	size_t used,
		sent; /* of buffer: an echo that the client does not take yet, a message so far */
	size_t bytes;
	uint8_t *buffer;
};

static int listen_at(const struct sockaddr_in *at)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		fail("make a socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)at, sizeof(*at)) || listen(fd, BACKLOG))
		fail("listen");
	return fd;
}

static void leave(struct guest *guest)
{
	close(guest->fd);
	free(guest->buffer);
	free(guest);
}

static void welcome(int epoll, int listener, size_t bytes)
{
	struct guest *guest;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	guest = calloc(1, sizeof(*guest));
	if (!guest || !(guest->buffer = malloc(bytes)))
		fail("keep a connection");
	guest->fd = fd;
	guest->bytes = bytes;
	no_delay(fd);
	watch(epoll, fd, guest, EPOLLIN, EPOLL_CTL_ADD);
}

/* What the client does not take stays, and nothing more is read until it is gone */
static void echo(int epoll, struct guest *guest)
{
	ssize_t n;

	if (guest->sent == guest->used) {
		n = recv(guest->fd, guest->buffer, guest->bytes, 0);
		if (n <= 0) {
			if (n == 0 || errno != EAGAIN)
				leave(guest);
			return;
		}
		guest->used = (size_t)n;
		guest->sent = 0;
	}
	n = send(guest->fd, guest->buffer + guest->sent, guest->used - guest->sent, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN) {
		leave(guest);
		return;
	}
	guest->sent += n > 0 ? (size_t)n : 0;
	watch(epoll, guest->fd, guest, guest->sent < guest->used ? EPOLLOUT : EPOLLIN,
	      EPOLL_CTL_MOD);
}

static void sink(int epoll, struct guest *guest)
{
	struct head head;
	ssize_t n;

	(void)epoll;
	while ((n = recv(guest->fd, guest->buffer + guest->used, guest->bytes - guest->used, 0)) >
	       0) {
		guest->used += (size_t)n;
		if (guest->used < guest->bytes)
			continue;
		guest->used = 0;
		memcpy(&head, guest->buffer, sizeof(head));
		tell_message(&head);
	}
	if (n == 0 || errno != EAGAIN)
		leave(guest);
}

static void serve(const struct sockaddr_in *at, size_t bytes,
		  void (*input)(int epoll, struct guest *guest))
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), listener = listen_at(at);
	struct epoll_event events[EVENTS];

	if (epoll < 0)
		fail("make a socket");
	setvbuf(stdout, NULL, _IOLBF, 0);
	allow_descriptors("steady");
	watch(epoll, listener, NULL, EPOLLIN, EPOLL_CTL_ADD);
	for (;;) {
		int n = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				input(epoll, events[i].data.ptr);
			else
				welcome(epoll, listener, bytes);
		}
	}
}

/* ---- clients ---- */

struct plan plan;
static uint32_t left; /* connections that have not ended */

void give_up(struct conn *conn, const char *why)
{
	printf("f %u %s\n", conn->id, why);
	close(conn->fd);
	conn->ended = true;
	left--;
}

void end(struct conn *conn)
{
	printf("e %u %llu\n", conn->id, (unsigned long long)(now_ns() - conn->began_ns));
	close(conn->fd);
	conn->ended = true;
	left--;
}

static void start_connect(int epoll, struct conn *conn, const struct sockaddr_in *to)
{
	int type = plan.datagrams ? SOCK_DGRAM : SOCK_STREAM;

	conn->fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	conn->due_ns = NEVER;
	conn->in = malloc(plan.bytes);
	conn->came = plan.datagrams ? calloc(plan.messages, sizeof(*conn->came)) : NULL;
	if (conn->fd < 0 || !conn->in || (plan.datagrams && !conn->came))
		fail("make a socket");
	if (!plan.datagrams)
		no_delay(conn->fd);
	conn->began_ns = now_ns();
	if (connect(conn->fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS) {
		give_up(conn, strerrorname_np(errno));
		return;
	}
	conn->events = EPOLLIN | EPOLLOUT;
	watch(epoll, conn->fd, conn, conn->events, EPOLL_CTL_ADD);
}

/* That it can be written is news only while something waits for that */
static void settle(int epoll, struct conn *conn)
{
	uint32_t events = conn->connected && !conn->writing ? EPOLLIN : EPOLLIN | EPOLLOUT;

	if (conn->ended || events == conn->events)
		return;
	conn->events = events;
	watch(epoll, conn->fd, conn, events, EPOLL_CTL_MOD);
}

/* Its turn within an interval is its own, whenever it came to be */
static void connected(struct conn *conn, uint64_t base_ns)
{
	uint64_t now = now_ns(), turn = base_ns;
	int error = 0;
	socklen_t len = sizeof(error);

	getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len);
	if (error) {
		give_up(conn, strerrorname_np(error));
		return;
	}
	conn->connected = true;
	printf("c %u %llu\n", conn->id, (unsigned long long)(now - conn->began_ns));
	conn->due_ns = now;
	if (plan.interval_ns) {
		turn += plan.interval_ns * conn->id / plan.connections;
		if (turn < now)
			turn += (now - turn + plan.interval_ns - 1) / plan.interval_ns *
				plan.interval_ns;
		conn->due_ns = turn;
	}
	conn->first_ns = conn->due_ns;
}

/* What follows a message's head (xorshift, Marsaglia 2003) */
static void fill(uint8_t *message, const struct head *head)
{
	uint64_t word = ((uint64_t)head->connection << 32 | head->number) ^ head->due_ns;
	size_t at = sizeof(*head);

	memcpy(message, head, sizeof(*head));
	word = word ? word : 1;
	while (at < plan.bytes) {
		size_t n = plan.bytes - at < sizeof(word) ? plan.bytes - at : sizeof(word);

		word ^= word << 13;
		word ^= word >> 7;
		word ^= word << 17;
		memcpy(message + at, &word, n);
		at += n;
	}
}

/* Messages that are due, as far as the socket takes them */
static void write_due(struct conn *conn)
{
	static uint8_t message[MAX_BYTES];
	bool full = false;

	while (!full && conn->number < plan.messages && conn->due_ns <= now_ns()) {
		struct head head = {conn->id, conn->number, conn->due_ns};
		ssize_t n;

		fill(message, &head);
		n = send(conn->fd, message + conn->sent, plan.bytes - conn->sent, MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN) {
			give_up(conn, strerrorname_np(errno));
			return;
		}
		full = n < 0;
		conn->sent += n > 0 ? (size_t)n : 0;
		if (conn->sent < plan.bytes)
			continue;
		conn->sent = 0;
		conn->number++;
		conn->due_ns = plan.interval_ns ? conn->due_ns + plan.interval_ns : NEVER;
	}
	conn->writing = full;
	if (!plan.answered && conn->number == plan.messages)
		shutdown(conn->fd, SHUT_WR);
}

bool take_answer(const struct conn *conn, struct head *head)
{
	static uint8_t wanted[MAX_BYTES];

	memcpy(head, conn->in, sizeof(*head));
	fill(wanted, head);
	return head->connection == conn->id && memcmp(conn->in, wanted, plan.bytes) == 0;
}

void tell_message(const struct head *head)
{
	printf("m %u %u %llu\n", head->connection, head->number,
	       (unsigned long long)(now_ns() - head->due_ns));
}

static void answered(struct conn *conn)
{
	struct head head;

	if (!take_answer(conn, &head) || head.number != conn->got) {
		give_up(conn, "bytes");
		return;
	}
	tell_message(&head);
	if (++conn->got == plan.messages)
		end(conn);
	else if (!plan.interval_ns)
		conn->due_ns = now_ns();
}

static void read_answers(struct conn *conn)
{
	ssize_t n = 1;

	while (!conn->ended &&
	       (n = recv(conn->fd, conn->in + conn->taken, plan.bytes - conn->taken, 0)) > 0) {
		conn->taken += (size_t)n;
		if (conn->taken < plan.bytes)
			continue;
		conn->taken = 0;
		answered(conn);
	}
	if (conn->ended || (n < 0 && errno == EAGAIN))
		return;
	if (n == 0 && !plan.answered && conn->number == plan.messages)
		end(conn);
	else
		give_up(conn, n ? strerrorname_np(errno) : "closed");
}

static void handle(int epoll, struct conn *conn, uint64_t base_ns)
{
	if (conn->ended)
		return;
	if (!conn->connected)
		connected(conn, base_ns);
	if (!conn->ended && plan.datagrams)
		read_datagrams(conn);
	else if (!conn->ended)
		read_answers(conn);
	if (!conn->ended)
		write_due(conn);
	settle(epoll, conn);
}

/* Its time is over: of datagrams what has not come by now is lost */
static void expire(struct conn *conn)
{
	if (plan.datagrams && conn->number == plan.messages)
		end(conn);
	else
		give_up(conn, "time");
}

/* When the next message is due, or a connection is to be given up, which is done here */
static uint64_t look_round(int epoll, struct conn *conns)
{
	uint64_t next = NEVER, now = now_ns(), last, until;

	for (struct conn *conn = conns; conn < conns + plan.connections; conn++) {
		if (conn->ended)
			continue;
		if (conn->connected && !conn->writing && conn->due_ns <= now)
			write_due(conn);
		settle(epoll, conn);
		last = conn->connected ? conn->first_ns + plan.interval_ns * plan.messages
				       : conn->began_ns;
		until = last + plan.wait_ns;
		if (!conn->ended && until <= now)
			expire(conn);
		if (conn->ended)
			continue;
		next = until < next ? until : next;
		if (!conn->writing && conn->number < plan.messages && conn->due_ns < next)
			next = conn->due_ns;
	}
	return next;
}

static void run(const struct sockaddr_in *to)
{
	struct conn *conns = calloc(plan.connections, sizeof(*conns));
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event events[EVENTS];
	uint64_t base_ns = now_ns(), next;

	if (!conns || epoll < 0)
		fail("keep connections");
	/* Told at the end: nobody may be reading a pipe before, and a full one would hold us up. */
	setvbuf(stdout, malloc(TOLD_BYTES), _IOFBF, TOLD_BYTES);
	allow_descriptors("steady");
	left = plan.connections;
	for (uint32_t i = 0; i < plan.connections; i++) {
		conns[i].id = i;
		start_connect(epoll, &conns[i], to);
	}
	while ((next = look_round(epoll, conns)) != NEVER) {
		uint64_t now = now_ns(), rest = next > now ? next - now : 0;
		struct timespec timeout = {(time_t)(rest / NS_PER_S), (long)(rest % NS_PER_S)};
		int n = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);

		for (int i = 0; i < n; i++)
			handle(epoll, events[i].data.ptr, base_ns);
	}
}

/* ---- words ---- */

static bool number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
	char *rest;

	errno = 0;
	*value = strtoull(text, &rest, 10);
	return !errno && *text >= '0' && *text <= '9' && !*rest && *value >= least &&
	       *value <= most;
}

static bool planned(char **words)
{
	uint64_t connections, messages, bytes, interval_us, wait_s;
	uint64_t most = plan.datagrams ? DATAGRAM_BYTES : MAX_BYTES;

	if (!number(words[0], 1, 100000, &connections) ||
	    !number(words[1], 1, 1u << 30, &messages) ||
	    !number(words[2], sizeof(struct head), most, &bytes) ||
	    !number(words[3], plan.datagrams, 3600000000, &interval_us) ||
	    !number(words[4], 1, 3600, &wait_s))
		return false;
	plan.connections = (uint32_t)connections;
	plan.messages = (uint32_t)messages;
	plan.bytes = bytes;
	plan.interval_ns = interval_us * 1000;
	plan.wait_ns = wait_s * NS_PER_S;
	return true;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	const char *what = argc > 3 ? argv[1] : "";
	uint64_t port = 0, bytes = 0;
	bool good = argc > 3 && inet_pton(AF_INET, argv[2], &address.sin_addr) == 1 &&
		    number(argv[3], 1, 65535, &port);

	address.sin_port = htons((uint16_t)port);
	plan.datagrams = !strcmp(what, "ask-datagrams");
	plan.answered = plan.datagrams || !strcmp(what, "ask");
	if (good && argc == 4 && !strcmp(what, "echo"))
		serve(&address, CHUNK_BYTES, echo);
	if (good && argc == 4 && !strcmp(what, "echo-datagrams"))
		echo_datagrams(&address);
	if (good && argc == 5 && !strcmp(what, "sink") &&
	    number(argv[4], sizeof(struct head), MAX_BYTES, &bytes))
		serve(&address, bytes, sink);
	if (!good || argc != 9 || (!plan.answered && strcmp(what, "send") != 0) ||
	    !planned(argv + 4)) {
		fprintf(stderr,
			"usage: steady echo|echo-datagrams ADDRESS PORT | steady sink ADDRESS PORT "
			"BYTES | steady ask|send|ask-datagrams ADDRESS PORT CONNECTIONS MESSAGES "
			"BYTES(16 to 1048576, of datagrams to 65507) INTERVAL_US(of datagrams not "
			"0) WAIT_S\n");
		return 2;
	}
	run(&address);
	return 0;
}
