/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_mss.c: how long a segment may be: by the MTU of the leg, by what both peers take, and less
 * the options that each segment bears.
 */
#include "tcp_int.h"

uint32_t tcp_mtu(const struct env *env, const struct tcb *t)
{
	return tcb_is_outer(t) ? tcb_ends(t)->f.mtu : env->cfg.inner_mtu;
}

/* What this host may send in a segment and take in one, as far as it knows without the peer */
static uint32_t own_mss(const struct env *env, const struct tcb *t)
{
	uint32_t mss = tcp_mtu(env, t) - wire_ip_len(tcb_ends(t)->f.pair.family) - WIRE_TCP_LEN;
	uint16_t most = tcb_is_outer(t) ? tcb_ends(t)->mss_most : 0;

	return most ? min_u32(mss, most) : mss;
}

uint16_t tcp_adv_mss(const struct env *env, const struct tcb *t)
{
	uint16_t other = tcb_is_outer(t) ? 0 : tcb_peer(t)->peer_mss;
	uint32_t mss = own_mss(env, t);

	return (uint16_t)(other ? min_u32(mss, other) : mss);
}

uint32_t tcp_peer_takes(const struct env *env, const struct tcb *t)
{
	const struct ends *e = tcb_ends(t);
	const struct tcb *inner = tcb_inner_of(e);
	uint32_t most = t->peer_mss ? t->peer_mss : 65535, app;

	if (!tcb_is_outer(t) || !e->app_segment)
		return most;
	app = e->app_segment + (inner->flags & TF_TS ? WIRE_OPT_TS_LEN : 0u);
	if (app < TCP_MIN_MSS)
		app = TCP_MIN_MSS;
	return app < tcp_adv_mss(env, inner) ? min_u32(most, app) : most;
}

void tcp_set_mss(struct env *env, struct tcb *t)
{
	uint32_t headers = wire_ip_len(tcb_ends(t)->f.pair.family) + WIRE_TCP_LEN;
	uint32_t mss = min_u32(own_mss(env, t), tcp_peer_takes(env, t));
	uint16_t path = tcb_is_outer(t) ? 0 : tcb_ends(t)->app_path;

	mss = path ? min_u32(mss, path - headers) : mss;
	mss -= t->flags & TF_TS ? WIRE_OPT_TS_LEN : 0;
	t->mss = (uint16_t)(mss - agree_confirm_len(t));
}
