// SPDX-License-Identifier: Apache-2.0
/* capture.c: see capture.h. */
#include "capture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "core/units.h"

enum {
	EPB_TYPE = 6,
	EPB_FLAGS = 2,	  /* option code */
	FIXED_BYTES = 28, /* of a block, up to its data */
	FLAGS_BYTES = 8,
	TAIL_BYTES = FLAGS_BYTES + 4 + 4, /* options, their end, and the length again */
};

static int64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * (int64_t)NS_PER_S + ts.tv_nsec;
}

int capture_begin(struct capture *c, int fd, uint32_t legs, uint32_t snaplen_bytes)
{
	capture_end(c);
	c->buffer = malloc(CAPTURE_BUFFER_BYTES);
	if (!c->buffer)
		return -ENOMEM;
	c->legs = legs;
	c->snaplen_bytes = snaplen_bytes;
	c->epoch_ns = (uint64_t)(clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC));
	c->frames = c->dropped = 0;
	c->fd = fd;
	return 0;
}

void capture_end(struct capture *c)
{
	free(c->buffer);
	c->buffer = NULL;
	c->begin = c->end = 0;
	c->fd = -1;
}

/* Room for bytes more behind what the buffer has; false: there is none. */
static bool make_room(struct capture *c, uint32_t bytes)
{
	if (CAPTURE_BUFFER_BYTES - c->end >= bytes)
		return true;
	memmove(c->buffer, c->buffer + c->begin, c->end - c->begin);
	c->end -= c->begin;
	c->begin = 0;
	return CAPTURE_BUFFER_BYTES - c->end >= bytes;
}

static uint8_t *put32(uint8_t *to, uint32_t value)
{
	memcpy(to, &value, sizeof(value));
	return to + sizeof(value);
}

static uint8_t *put(uint8_t *to, const void *from, uint32_t bytes, uint32_t *left)
{
	uint32_t n = bytes < *left ? bytes : *left;

	memcpy(to, from, n);
	*left -= n;
	return to + n;
}

void capture_frame(struct capture *c, uint32_t nic, enum dmm_leg leg, enum capture_way way,
		   const uint8_t *frame, uint32_t bytes, const struct dmm_payload *payload,
		   uint64_t now_ns)
{
	uint32_t whole = bytes + (payload ? payload->bytes : 0);
	uint32_t kept = whole < c->snaplen_bytes ? whole : c->snaplen_bytes;
	uint32_t padding = -kept & 3u, left = kept;
	uint32_t block = FIXED_BYTES + kept + padding + TAIL_BYTES;
	uint64_t time_ns = now_ns + c->epoch_ns;

	c->frames++;
	if (!make_room(c, block)) {
		c->dropped++;
		return;
	}
	uint8_t *to = c->buffer + c->end;

	to = put32(to, EPB_TYPE);
	to = put32(to, block);
	to = put32(to, 2 * nic + (leg == DMM_LEG_INNER));
	to = put32(to, (uint32_t)(time_ns >> 32));
	to = put32(to, (uint32_t)time_ns);
	to = put32(to, kept);
	to = put32(to, whole);
	to = put(to, frame, bytes, &left);
	for (uint32_t i = 0; payload && i < payload->n; i++)
		to = put(to, payload->part[i].data, payload->part[i].bytes, &left);
	memset(to, 0, padding);
	to = put32(to + padding, EPB_FLAGS | 4u << 16);
	to = put32(to, way);
	to = put32(to, 0);
	put32(to, block);
	c->end += block;
}

void capture_flush(struct capture *c)
{
	while (c->fd >= 0 && c->begin != c->end) {
		ssize_t n = send(c->fd, c->buffer + c->begin, c->end - c->begin,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			capture_end(c);
		if (n < 0)
			return;
		c->begin += (uint32_t)n;
	}
	c->begin = c->end = 0;
}
