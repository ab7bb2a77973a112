/* SPDX-License-Identifier: Apache-2.0 */
/* trips.c: see trips.h */
#include "trips.h"

#include <stdio.h>
#include <stdlib.h>

static uint64_t *v, n, cap;

void trips_add(uint64_t ns)
{
	if (n == cap) {
		cap = cap ? 2 * cap : 1024;
		v = realloc(v, cap * sizeof(*v));
	}
	v[n++] = ns;
}

static int by_length(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

void trips_report(uint64_t skip, uint64_t late_ns)
{
	static const struct {
		const char *name;
		uint64_t of_10000;
	} quantiles[] = {{"p50", 5000}, {"p90", 9000}, {"p99", 9900}, {"p999", 9990}};
	uint64_t late = 0, *of, some;

	if (n > skip) {
		of = v + skip;
		some = n - skip;
		for (uint64_t i = 0; i < some; i++)
			late += of[i] > late_ns;
		qsort(of, some, sizeof(*of), by_length);
		for (unsigned i = 0; i < sizeof(quantiles) / sizeof(*quantiles); i++)
			printf("trip_%s_us=%lu\n", quantiles[i].name,
			       of[(some - 1) * quantiles[i].of_10000 / 10000] / 1000);
		printf("trip_max_us=%lu\ntrips=%lu\nlate=%lu\n", of[some - 1] / 1000, some, late);
	}
	free(v);
}
