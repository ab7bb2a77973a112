/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulator's control: a Unix stream socket that takes one line and answers with one line of
 * JSON.
 *
 *	stats                      the counters of both directions
 *	reset                      counters to zero; frames in flight stay
 *	set DIR KEY=VALUE...       DIR is ab, ba or both; all of the keys or none of them
 *	quit
 *
 * The keys are those of assign.h. A refused line answers {"error": "..."} and changes nothing.
 */
#ifndef WANEM_CONTROL_H
#define WANEM_CONTROL_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include "assign.h"
#include "direction.h"
#include "emu.h"

#define CONTROL_CLIENTS 8
#define CONTROL_LINE_BYTES 1024
#define CONTROL_POLL_FDS (1 + CONTROL_CLIENTS)

struct wanem {
	struct direction directions[2]; /* [0] carries from A to B */
	uint64_t started_ns;
	bool quit;
};

struct control_client {
	int fd;
	size_t used;
	char line[CONTROL_LINE_BYTES];
};

struct control {
	int listen_fd;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct control_client clients[CONTROL_CLIENTS];
};

/* Says on stderr why it cannot; -errno. */
int control_init(struct control *control, const char *path);
void control_deinit(struct control *control);
/* Fills CONTROL_POLL_FDS entries; those not in use have fd -1. */
void control_poll_fds(const struct control *control, struct pollfd *fds);
void control_serve(struct control *control, const struct pollfd *fds, struct wanem *wanem);

#endif
