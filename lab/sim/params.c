/* SPDX-License-Identifier: Apache-2.0 */
/* params.c: see params.h */
#include "params.h"

#include "base/util.h"

#include <stdio.h>
#include <stdlib.h>

struct params P = {.seed = 1,
		   .conns = 1,
		   .up = 1000000,
		   .down = 1000000,
		   .rate_Bps = 12500000,
		   .delay_ns = 10000000,
		   .queue_bytes = 1 << 20,
		   .mtu = 1500,
		   .limit_ns = 3600 * NS_PER_S,
		   .start_ns = NS_PER_S,
		   .krcvbuf = 1 << 20,
		   .gso = 65535,
		   .timewait_ns = NS_PER_S,
		   .loss_back = -1,
		   .reorder_ns = 5000000};

#define U(key) {#key, &P.key, NULL},
#define D(key) {#key, NULL, &P.key},

static const struct {
	const char *name;
	uint64_t *u;
	double *d;
} keys[] = {
#include "params.def"
};

static const struct {
	const char *name;
	char *text;
} texts[] = {{"cc", P.cc}, {"transport", P.transport}, {"rival", P.rival}};

_Static_assert(sizeof(P.cc) == sizeof(P.transport) && sizeof(P.cc) == sizeof(P.rival),
	       "one length for all");

static void set(const char *name, const char *value)
{
	for (size_t k = 0; k < sizeof(texts) / sizeof(*texts); k++) {
		if (!strcmp(texts[k].name, name)) {
			strncpy(texts[k].text, value, sizeof(P.cc) - 1);
			return;
		}
	}
	for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
		if (strcmp(keys[k].name, name))
			continue;
		if (keys[k].u)
			*keys[k].u = strtoull(value, NULL, 0);
		else
			*keys[k].d = strtod(value, NULL);
		return;
	}
	fprintf(stderr, "unknown key %s\n", name);
	exit(2);
}

void params_parse(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *eq = strchr(argv[i], '=');

		if (!eq) {
			fprintf(stderr, "no value in %s\n", argv[i]);
			exit(2);
		}
		*eq = 0;
		set(argv[i], eq + 1);
	}
	if (P.loss_back < 0)
		P.loss_back = P.loss;
}
