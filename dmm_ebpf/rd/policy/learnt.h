/* SPDX-License-Identifier: Apache-2.0 */
/* learnt.h: asking what was learnt (routetable.h). */
#ifndef DMM_LEARNT_H
#define DMM_LEARNT_H

#include "routetable.h"

/* Whether there is such a key; *number is set if so. */
int learnt_get(const struct learnt *l, const void *key, size_t size, uint32_t *number);

#endif
