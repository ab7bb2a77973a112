/* SPDX-License-Identifier: Apache-2.0 */
/* routelines.c: the plain lines of a routes file (routetable.h). */
#include "routetable.h"

#include <arpa/inet.h>
#include <string.h>

#include "learnt.h"

enum {
	MOST_LINE = 4000, /* bytes; a longer one may be too long, which is not for here to say */
	MOST_PREFIX = INET6_ADDRSTRLEN + 4,
};

struct prefix {
	uint64_t hi, lo;
	uint8_t family, length;
};

/* A number as everybody writes it, without zeros before it; -1: another, or one above most. */
static int number_at(const char **at, const char *end, int most)
{
	const char *c = *at;
	int number = 0;

	if (c == end || *c < '0' || *c > '9')
		return -1;
	if (*c == '0' && c + 1 < end && c[1] >= '0' && c[1] <= '9')
		return -1;
	for (; c < end && *c >= '0' && *c <= '9'; c++) {
		number = 10 * number + (*c - '0');
		if (number > most)
			return -1;
	}
	*at = c;
	return number;
}

static int address4(const char **at, const char *end, struct prefix *out)
{
	uint32_t addr = 0;

	for (int i = 0; i < 4; i++) {
		int byte;

		if (i && (*at == end || *(*at)++ != '.'))
			return 0;
		byte = number_at(at, end, 255);
		if (byte < 0)
			return 0;
		addr = addr << 8 | (uint32_t)byte;
	}
	*out = (struct prefix){.lo = addr, .family = 4, .length = 32};
	return 1;
}

static uint64_t big_endian(const uint8_t *bytes)
{
	uint64_t word = 0;

	for (int i = 0; i < 8; i++)
		word = word << 8 | bytes[i];
	return word;
}

static int address6(const char **at, const char *end, struct prefix *out)
{
	const char *slash = memchr(*at, '/', (size_t)(end - *at));
	size_t size = (size_t)((slash ? slash : end) - *at);
	char text[INET6_ADDRSTRLEN];
	uint8_t bytes[16];

	if (size >= sizeof(text))
		return 0;
	memcpy(text, *at, size);
	text[size] = '\0';
	if (strlen(text) != size || inet_pton(AF_INET6, text, bytes) != 1)
		return 0;
	*at += size;
	*out = (struct prefix){big_endian(bytes), big_endian(bytes + 8), 6, 128};
	return 1;
}

static uint64_t low_bits(int count)
{
	return count >= 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

static int has_host_bits(const struct prefix *p)
{
	int low = (p->family == 4 ? 32 : 128) - p->length; /* bits behind the prefix */

	return (p->lo & low_bits(low)) || (low > 64 && (p->hi & low_bits(low - 64)));
}

/* ::ffff:0:0/96 and what is in it, RFC 4291 section 2.5.5.2 */
static int is_mapped(const struct prefix *p)
{
	return p->family == 6 && p->length >= 96 && !p->hi && p->lo >> 32 == 0xffff;
}

static int prefix_of(const char *at, const char *end, struct prefix *out)
{
	if (end - at > MOST_PREFIX)
		return 0;
	if (memchr(at, ':', (size_t)(end - at)) ? !address6(&at, end, out)
						: !address4(&at, end, out))
		return 0;
	if (at < end && *at == '/') {
		int length;

		at++;
		length = number_at(&at, end, out->length);
		if (length < 0)
			return 0;
		out->length = (uint8_t)length;
	}
	return at == end && !has_host_bits(out) && !is_mapped(out);
}

static int is_printable(const char *at, const char *end)
{
	for (; at < end; at++)
		if ((*at < ' ' || *at > '~') && *at != '\t')
			return 0;
	return 1;
}

/* What a line between at and its '\n' is: 1 a row, 0 none, -1 not plain. */
static int line(const struct learnt *tails, const char *at, const char *end,
		const struct routes *out, uint32_t row)
{
	const char *comma, *to_end;
	struct prefix p;
	uint32_t tail;

	while (at < end && *at == ' ')
		at++;
	if (at == end || (*at == '\r' && at + 1 == end))
		return 0;
	if (*at == '#')
		return is_printable(at, end[-1] == '\r' ? end - 1 : end) ? 0 : -1;
	comma = memchr(at, ',', (size_t)(end - at));
	if (!comma)
		return -1;
	for (to_end = comma; to_end > at && to_end[-1] == ' ';)
		to_end--;
	if (!prefix_of(at, to_end, &p) ||
	    !learnt_get(tails, comma + 1, (size_t)(end - comma - 1), &tail))
		return -1;
	out->families[row] = p.family;
	out->lengths[row] = p.length;
	out->addrs_hi[row] = p.hi;
	out->addrs_lo[row] = p.lo;
	out->match[row] = tail >> 8;
	out->stack[row] = (uint8_t)tail;
	return 1;
}

void lines_read(const struct learnt *tails, const char *text, size_t size, uint32_t before,
		const struct routes *out, uint32_t room, struct lines_read *done)
{
	const char *at = text, *end = text + size;

	*done = (struct lines_read){0};
	while (at < end && done->rows < room) {
		const char *newline = memchr(at, '\n', (size_t)(end - at));
		int what;

		if (!newline || newline - at > MOST_LINE)
			break;
		what = line(tails, at, newline, out, done->rows);
		if (what < 0)
			break;
		done->lines++;
		if (what)
			out->origin[done->rows++] = before + done->lines;
		at = newline + 1;
	}
	done->bytes = (size_t)(at - text);
}
