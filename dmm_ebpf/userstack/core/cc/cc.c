/* SPDX-License-Identifier: Apache-2.0 */
/* cc.c: the congestion controls by name */
#include "cc.h"

#include <string.h>

const struct cc_ops *cc_find(const char *name)
{
	static const struct cc_ops *const all[] = {
		&cc_bbr,
		&cc_cubic,
		&cc_reno,
		&cc_wan,
	};

	for (unsigned int i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (!strcmp(all[i]->name, name))
			return all[i];
	}
	return NULL;
}
