// SPDX-License-Identifier: Apache-2.0
/* paths.c: see paths.h. */
#include "paths.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/util.h"

enum { FIRST_WAITERS = 1024, CLOCK_STEPS = 64 };

/* Keyed: remote peers choose the addresses. */
static uint32_t bucket_of(const struct paths *paths, const uint8_t addr[16])
{
	return (uint32_t)siphash(paths->key, addr, 2) & (PATHS_MAX - 1);
}

static int waiters_grow(struct paths *paths)
{
	uint32_t old = paths->n_waiters;
	uint32_t count = old ? old * 2 : FIRST_WAITERS;
	struct waiter *more = realloc(paths->waiter, count * sizeof(*more));

	if (!more)
		return -ENOMEM;
	for (uint32_t i = old; i < count; i++)
		more[i].next = i + 1 < count ? i + 1 : PATH_NONE;
	paths->waiter = more;
	paths->n_waiters = count;
	paths->free_waiter = old;
	return 0;
}

int paths_init(struct paths *paths, const uint64_t key[2])
{
	memset(paths, 0, sizeof(*paths));
	memcpy(paths->key, key, sizeof(paths->key));
	paths->path = calloc(PATHS_MAX, sizeof(*paths->path));
	paths->bucket = malloc(PATHS_MAX * sizeof(*paths->bucket));
	if (!paths->path || !paths->bucket || waiters_grow(paths)) {
		paths_deinit(paths);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < PATHS_MAX; i++) {
		paths->bucket[i] = PATH_NONE;
		paths->path[i].next = i + 1 < PATHS_MAX ? i + 1 : PATH_NONE;
	}
	return 0;
}

void paths_deinit(struct paths *paths)
{
	free(paths->path);
	free(paths->bucket);
	free(paths->waiter);
	memset(paths, 0, sizeof(*paths));
}

uint32_t path_number(const struct paths *paths, const struct path *path)
{
	return (uint32_t)(path - paths->path);
}

struct path *path_find(struct paths *paths, const uint8_t addr[16], uint32_t hint)
{
	if (hint < PATHS_MAX && paths->path[hint].state != PATH_FREE &&
	    !memcmp(paths->path[hint].addr, addr, 16))
		return &paths->path[hint];
	uint32_t i = paths->bucket[bucket_of(paths, addr)];

	while (i != PATH_NONE && memcmp(paths->path[i].addr, addr, 16))
		i = paths->path[i].next;
	return i == PATH_NONE ? NULL : &paths->path[i];
}

/* Of the next READY entries after the hand, the one used longest ago makes room. */
static void make_room(struct paths *paths)
{
	struct path *oldest = NULL;

	for (uint32_t seen = 0, steps = 0; seen < CLOCK_STEPS && steps < PATHS_MAX; steps++) {
		struct path *path = &paths->path[paths->hand++ & (PATHS_MAX - 1)];

		if (path->state != PATH_READY)
			continue;
		seen++;
		if (!oldest || path->used_ns < oldest->used_ns)
			oldest = path;
	}
	if (oldest)
		path_remove(paths, oldest);
}

struct path *path_add(struct paths *paths, const uint8_t addr[16], uint64_t now_ns)
{
	if (paths->n_pending >= PATHS_PENDING_MAX)
		return NULL;
	if (paths->free_path == PATH_NONE)
		make_room(paths);
	uint32_t i = paths->free_path;
	struct path *path = &paths->path[i];
	uint32_t *head = &paths->bucket[bucket_of(paths, addr)];

	paths->free_path = path->next;
	memset(path, 0, sizeof(*path));
	memcpy(path->addr, addr, 16);
	path->state = PATH_PENDING;
	path->waiters = PATH_NONE;
	path->used_ns = now_ns;
	path->next = *head;
	*head = i;
	paths->n_pending++;
	paths->used++;
	return path;
}

void path_remove(struct paths *paths, struct path *path)
{
	uint32_t i = path_number(paths, path);
	uint32_t *link = &paths->bucket[bucket_of(paths, path->addr)];

	while (*link != i)
		link = &paths->path[*link].next;
	*link = path->next;
	while (path_unwait(paths, path) != PATH_NONE)
		;
	if (path->state == PATH_PENDING)
		paths->n_pending--;
	path->state = PATH_FREE;
	path->next = paths->free_path;
	paths->free_path = i;
	paths->used--;
}

int path_wait(struct paths *paths, struct path *path, uint32_t conn)
{
	if (paths->free_waiter == PATH_NONE && waiters_grow(paths))
		return -ENOMEM;
	uint32_t i = paths->free_waiter;

	paths->free_waiter = paths->waiter[i].next;
	paths->waiter[i].conn = conn;
	paths->waiter[i].next = path->waiters;
	path->waiters = i;
	return 0;
}

uint32_t path_unwait(struct paths *paths, struct path *path)
{
	uint32_t i = path->waiters;

	if (i == PATH_NONE)
		return PATH_NONE;
	path->waiters = paths->waiter[i].next;
	paths->waiter[i].next = paths->free_waiter;
	paths->free_waiter = i;
	return paths->waiter[i].conn;
}
