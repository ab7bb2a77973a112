/* SPDX-License-Identifier: Apache-2.0 */
/*
 * choose STACK ADDR PORT [COMMAND...]: connects by a stack of the program's own choice, says on
 * standard error who serves, and copies what comes to standard output; or starts COMMAND with the
 * connection as its descriptor 3, for programs that cannot set socket options.
 *
 *	cc -o choose choose.c && ./choose wan 203.0.113.7 80
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <dmm.h>

static void fail(const char *what)
{
	fprintf(stderr, "choose: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Not fatal: without dmm-ebpf, or the permission, the connection is the kernel's. */
static void choose(int fd, const char *stack)
{
	if (setsockopt(fd, SOL_DMM, DMM_STACK, stack, strlen(stack)))
		fprintf(stderr, "choose: the stack %s: %s\n", stack, strerror(errno));
}

static void tell(int fd)
{
	struct dmm_serving serving;
	socklen_t size = sizeof(serving);

	if (getsockopt(fd, SOL_DMM, DMM_SERVING, &serving, &size))
		return;
	fprintf(stderr, "served by %s", serving.stack);
	if (strcmp(serving.stack, serving.wanted))
		fprintf(stderr, " for %s, why %u", serving.wanted, serving.why);
	fprintf(stderr, "\n");
}

int main(int argc, char **argv)
{
	struct sockaddr_in peer = {.sin_family = AF_INET};
	char data[65536];
	ssize_t size;
	int fd;

	if (argc < 4 || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: choose STACK ADDR PORT [COMMAND...]\n");
		return 2;
	}
	peer.sin_port = htons(atoi(argv[3]));
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	choose(fd, argv[1]);
	if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)))
		fail("connect");
	tell(fd);
	if (argc > 4) {
		if (fd != 3 && dup2(fd, 3) < 0)
			fail("dup2");
		execvp(argv[4], argv + 4);
		fail(argv[4]);
	}
	while ((size = read(fd, data, sizeof(data))) > 0)
		if (write(STDOUT_FILENO, data, size) != size)
			fail("write");
	if (size < 0)
		fail("read");
	return 0;
}
