/* SPDX-License-Identifier: Apache-2.0 */
/*
 * holds.h: CHECK(), what must hold in a simulation or for a fuzz target; else the program aborts.
 */
#ifndef SIM_HOLDS_H
#define SIM_HOLDS_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #x);            \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif /* SIM_HOLDS_H */
