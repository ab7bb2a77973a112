/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_isn.c: where an end's sequence numbers and its timestamp clock begin, so that no stranger can
 * guess them. */
#include "tcp_int.h"

uint32_t isn_ts_offset(const struct env *env, const struct dmm_core_addr_pair *pair, uint32_t leg)
{
	return (uint32_t)(siphash(env->isn_secret, pair, 5) >> (leg ? 32 : 0));
}

/* RFC 6528: a keyed hash of the connection's names plus a clock of 4 us steps */
uint32_t isn_new(const struct env *env, const struct tcb *t, uint64_t now_ns)
{
	const struct ends *e = tcb_ends(t);
	uint64_t h = siphash(env->isn_secret, &e->f.pair, 5);
	uint64_t key[2] = {h, t->leg};
	uint32_t isn = (uint32_t)siphash(env->isn_secret, key, 2) + (uint32_t)(now_ns >> 12);

	/* in front of what the previous connection with these names may have left in the network
	 * (RFC 6191)
	 */
	if (tcb_is_outer(t) && e->has_isn_floor && (int32_t)(isn - e->isn_floor) <= 0)
		isn = e->isn_floor + 65536;
	return isn;
}
