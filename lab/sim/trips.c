/* SPDX-License-Identifier: Apache-2.0 */
/* trips.c: see trips.h */
#include "trips.h"

#include "params.h"

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

/* In microseconds, of at least one, which it sorts */
static void quantiles_report(const char *what, uint64_t *of, uint64_t n_of)
{
	static const struct {
		const char *name;
		uint64_t of_10000;
	} quantiles[] = {{"p50", 5000}, {"p90", 9000}, {"p99", 9900}, {"p999", 9990}};

	qsort(of, n_of, sizeof(*of), by_length);
	for (unsigned i = 0; i < sizeof(quantiles) / sizeof(*quantiles); i++)
		printf("%s_%s_us=%lu\n", what, quantiles[i].name,
		       of[(n_of - 1) * quantiles[i].of_10000 / 10000] / 1000);
	printf("%s_max_us=%lu\n", what, of[n_of - 1] / 1000);
}

void trips_report(uint64_t skip, uint64_t late_ns)
{
	uint64_t late = 0, *of, some;

	if (n > skip) {
		of = v + skip;
		some = n - skip;
		for (uint64_t i = 0; i < some; i++)
			late += of[i] > late_ns;
		quantiles_report("trip", of, some);
		printf("trips=%lu\nlate=%lu\n", some, late);
	}
	free(v);
}

void lives_report(const struct ksock *opened)
{
	uint64_t *lives = calloc(P.conns, sizeof(*lives)), n_lives = 0;

	for (uint32_t i = 0; lives && i < P.conns; i++) {
		uint64_t began_ns = P.start_ns + i * P.gap_ns;

		if (opened[i].done_ns > began_ns)
			lives[n_lives++] = opened[i].done_ns - began_ns;
	}
	if (n_lives)
		quantiles_report("life", lives, n_lives);
	free(lives);
}
