// SPDX-License-Identifier: Apache-2.0
/* report.c: see report.h. */
#include "report.h"

enum { STEP_US = 100 };

uint32_t report_write(const struct report *r, uint8_t *to)
{
	put_be32(to, REPORT_MAGIC);
	put_be32(to + 4, r->who);
	put_be16(to + 8, r->number);
	to[10] = r->flags;
	to[11] = r->n;
	to += REPORT_HEAD_BYTES;
	for (uint32_t i = 0; i < r->n; i++, to += REPORT_ITEM_BYTES) {
		put_be32(to, r->item[i].id);
		put_be16(to + 4, (uint16_t)min_u32(r->item[i].ago_us / STEP_US, UINT16_MAX));
		to[6] = (uint8_t)min_u32(r->item[i].times, UINT8_MAX);
		to[7] = 0;
	}
	return REPORT_HEAD_BYTES + r->n * (uint32_t)REPORT_ITEM_BYTES;
}

bool report_read(struct report *r, const uint8_t *from, uint32_t bytes)
{
	if (bytes < REPORT_HEAD_BYTES || get_be32(from) != REPORT_MAGIC)
		return false;
	*r = (struct report){.who = get_be32(from + 4),
			     .number = get_be16(from + 8),
			     .flags = from[10],
			     .n = from[11]};
	if (r->n > REPORT_ITEMS || bytes != REPORT_HEAD_BYTES + r->n * (uint32_t)REPORT_ITEM_BYTES)
		return false;
	from += REPORT_HEAD_BYTES;
	for (uint32_t i = 0; i < r->n; i++, from += REPORT_ITEM_BYTES)
		r->item[i] = (struct report_item){.id = get_be32(from),
						  .ago_us = get_be16(from + 4) * (uint32_t)STEP_US,
						  .times = from[6]};
	return true;
}
