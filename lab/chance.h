/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chance.h: losses in bursts, and jitter, out of random numbers that the caller draws; the link
 * emulator (lab/wanem) and the simulator's path (lab/sim) have them from here.
 *
 * Bursts are those of Gilbert (1960) and Elliott (1963): a Markov chain of two states, good and
 * bad. Its parameters have the names of Hasslinger and Hohlfeld (2008), as have those of netem's
 * gemodel (tc-netem(8)): p and r lead from good to bad and back, 1-h and 1-k are the losses in bad
 * and in good. A step is a packet, or a slot of time: then what is sent later meets another state,
 * which is what spacing packets out is for.
 */
#ifndef LAB_CHANCE_H
#define LAB_CHANCE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* After so many steps the chain knows nothing of where it was. */
#define GILBERT_STEPS_MAX (1U << 20)

struct gilbert {
	double p;	  /* good to bad, at each step; 0: there is no chain */
	double r;	  /* bad to good */
	double loss_bad;  /* 1-h */
	double loss_good; /* 1-k */
	uint64_t step_ns; /* 0: a step is a packet */
};

/* The share of steps in bad. */
static inline double gilbert_bad_share(const struct gilbert *g)
{
	return g->p / (g->p + g->r);
}

/* Whether the next step is in bad; u: a random number, from 0 to below 1. */
static inline bool gilbert_step(const struct gilbert *g, bool bad, double u)
{
	return bad ? u >= g->r : u < g->p;
}

/* How likely a packet is lost in a state. */
static inline double gilbert_loss(const struct gilbert *g, bool bad)
{
	return bad ? g->loss_bad : g->loss_good;
}

/*
 * What a packet is later than the delay, never below 0: even between 0 and jitter_ns, or
 * exponential with jitter_ns for its mean, as the wait in a queue that others fill.
 */
static inline uint64_t jitter_draw(uint64_t jitter_ns, bool exponential, double u)
{
	return (uint64_t)((double)jitter_ns * (exponential ? -log1p(-u) : u));
}

#endif
