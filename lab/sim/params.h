/* SPDX-License-Identifier: Apache-2.0 */
/*
 * params.h: what a simulation is told, as key=value words (listed in params.def, and cc=NAME,
 * transport=NAME, rival=NAME); sim.c, path.c and wild.c read it.
 *
 * Invariant: set once by params_parse(), before anything runs; but for again and abort_all_ns,
 * which sim.c counts down. Refuses unknown keys and words without a value (exit code 2).
 */
#ifndef SIM_PARAMS_H
#define SIM_PARAMS_H

#include <stdint.h>

enum { STRIP_SACK = 1, STRIP_TS = 2, STRIP_WS = 4 }; /* bits of strip */

#define U(name) uint64_t name;
#define D(name) double name;

struct params {
#include "params.def"
	char cc[16];
	/* of the outer legs; with another than TCP neither check nor outsider */
	char transport[16];
	/* the congestion control of a bulk flow beside all else, between two more hosts with cores
	 * that send neither copies nor parity; empty: there is none */
	char rival[16];
};

#undef U
#undef D

extern struct params P;

/* Fills P from the command line, with defaults for what it does not say */
void params_parse(int argc, char **argv);

#endif /* SIM_PARAMS_H */
