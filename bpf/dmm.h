/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only OR BSD-2-Clause */
/*
 * dmm.h: how a program chooses its stack and asks who serves it, with no library:
 *
 *	setsockopt(fd, SOL_DMM, DMM_STACK, "wan", 3);
 *
 * before connect(2) or listen(2). It says 0, or in errno
 *
 *	ENOPROTOOPT  no dmm-ebpf decides about this socket
 *	ENOENT       its policy has no stack of that name
 *	EPERM        the policy does not let this program choose that stack
 *	EISCONN      too late: the socket is connecting, connected or listening
 *
 * An empty name takes a choice back. getsockopt(2) with DMM_STACK gives the name of the stack that
 * serves, or while nothing is decided that of the one that was chosen, with a NUL; with DMM_SERVING
 * a struct dmm_serving.
 *
 * The definition for programs, BPF and Python alike (abi.h says how it is read).
 */
#ifndef DMM_H
#define DMM_H

enum dmm_sockopt_level {
	SOL_DMM = 0x444d4d,
};

enum dmm_sockopt {
	DMM_STACK = 1,
	DMM_SERVING = 2, /* of getsockopt() alone */
};

enum {
	DMM_STACK_NAME = 32, /* bytes, with a NUL */
};

/* Why the kernel serves a flow that its route, or its program, gives to a user stack */
enum dmm_why {
	DMM_WHY_DOWN = 1,
	DMM_WHY_FULL = 2,   /* or hung */
	DMM_WHY_DEVICE = 3, /* it leaves by a device that the stack does not serve, lo among them */
	DMM_WHY_SOCKET = 4, /* connecting to a loopback or link-local address, or no TCP */
	DMM_WHY_PEER = 5,   /* an accepted flow that came by the kernel */
	DMM_WHY_OPTION = 6, /* its SYN asks for what no user stack carries, see synopts.h */
	DMM_WHY_ATTACH = 7, /* it was open before the hooks were there */
	DMM_WHY_FILTER = 8, /* at its device a tc filter of others comes before ours */
	DMM_WHY_TUNNEL = 9, /* its route puts each packet into a tunnel, see tunnel.h */
	/* of UDP, what no user stack carries: to many, in fragments, or of a container */
	DMM_WHY_DATAGRAM = 10,
};

/* What became of a program's choice */
enum dmm_choice_state {
	DMM_CHOICE_NONE = 0,	/* it has made none */
	DMM_CHOICE_TAKEN = 1,	/* it decides */
	DMM_CHOICE_REFUSED = 2, /* EPERM: policy decides, as if nothing had been asked */
	DMM_CHOICE_VOID = 3,	/* the policy has changed since, and does not let it any more */
};

struct dmm_serving {
	char stack[32];	     /* the one that serves; empty: nothing is decided yet */
	char wanted[32];     /* the one that the route or the program names */
	unsigned int why;    /* enum dmm_why, where they differ; 0: none is known */
	unsigned int choice; /* enum dmm_choice_state */
};

#endif /* DMM_H */
