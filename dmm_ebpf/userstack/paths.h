/* SPDX-License-Identifier: Apache-2.0 */
/*
 * paths.h: which NIC and which link-layer address lead to a destination address.
 *
 * A table of fixed size, keyed by the destination of the packet (IPv4 as ::ffff:a.b.c.d). An entry is asked
 * for (PENDING, with the connections that wait for it) or known (READY). When the table is full the entry
 * that was used longest ago goes, so a path number that a connection still holds may come to mean another
 * destination: path_find() therefore compares the address, and the number is only where it looks first.
 */
#ifndef DMM_PATHS_H
#define DMM_PATHS_H

#include <stdint.h>

enum { PATHS_MAX = 65536, PATHS_PENDING_MAX = 4096, PATH_NONE = 0xffffffff };

enum path_state { PATH_FREE = 0, PATH_PENDING, PATH_READY };

struct path {
	uint8_t addr[16];
	uint8_t dst_mac[6];
	uint8_t state;	  /* enum path_state */
	uint8_t nic;	  /* index of the engine's NIC */
	uint32_t mtu;	  /* bytes of IP packet */
	uint32_t next;	  /* in the bucket's chain or in the free list */
	uint32_t waiters; /* first in the list of waiting connections */
	uint64_t used_ns;
};

struct waiter {
	uint32_t conn;
	uint32_t next;
};

struct paths {
	struct path *path; /* PATHS_MAX */
	uint32_t *bucket;  /* PATHS_MAX heads */
	struct waiter *waiter;
	uint64_t key[2];
	uint32_t n_waiters, free_path, free_waiter;
	uint32_t n_pending;
	uint32_t hand; /* of the clock that picks what goes when the table is full */
	uint32_t used;
};

int paths_init(struct paths *paths, const uint64_t key[2]);
void paths_deinit(struct paths *paths);

/* The entry of addr, looked for at hint first; NULL: none. */
struct path *path_find(struct paths *paths, const uint8_t addr[16], uint32_t hint);
/* A new PENDING entry; NULL: too many are pending. addr must not be in the table. */
struct path *path_add(struct paths *paths, const uint8_t addr[16], uint64_t now_ns);
void path_remove(struct paths *paths, struct path *path);
uint32_t path_number(const struct paths *paths, const struct path *path);

/* Has conn wait for path. Returns 0 or -ENOMEM. */
int path_wait(struct paths *paths, struct path *path, uint32_t conn);
/* Takes one waiting connection off; PATH_NONE: none is left. */
uint32_t path_unwait(struct paths *paths, struct path *path);

#endif /* DMM_PATHS_H */
