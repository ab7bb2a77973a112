/* SPDX-License-Identifier: Apache-2.0 */
/* cc_guard.c: see cc_guard.h. */
#include "cc_guard.h"

#include "../base/util.h"

#include <stdio.h>

#define MOST (1ull << 40) /* bytes of a window, bytes a second: more than any path has */
#define RESTART_SEGS 10u  /* RFC 6928 */

static const char *const names[CC_CALLS] = {
	"init",	  "on_ack",	"on_enter_recovery", "on_exit_recovery",
	"on_rto", "on_restart", "on_undo",	     "release"};

const char *cc_call_name(uint32_t type)
{
	return type < CC_CALLS ? names[type] : "?";
}

struct cc_guard *cc_guard_of(const struct cc *cc)
{
	return container_of(cc->ops, struct cc_guard, ops);
}

uint32_t cc_ops_has(const struct cc_ops *ops)
{
	return !!ops->init << CC_INIT | !!ops->on_ack << CC_ON_ACK |
	       !!ops->on_enter_recovery << CC_ON_ENTER_RECOVERY |
	       !!ops->on_exit_recovery << CC_ON_EXIT_RECOVERY | !!ops->on_rto << CC_ON_RTO |
	       !!ops->on_restart << CC_ON_RESTART | !!ops->on_undo << CC_ON_UNDO |
	       !!ops->release << CC_RELEASE;
}

void cc_ops_call(const struct cc_ops *ops, struct cc *cc, const struct cc_call *call)
{
	void (*plain[CC_CALLS])(struct cc *, uint64_t) = {
		[CC_INIT] = ops->init,
		[CC_ON_ENTER_RECOVERY] = ops->on_enter_recovery,
		[CC_ON_EXIT_RECOVERY] = ops->on_exit_recovery,
		[CC_ON_RTO] = ops->on_rto,
		[CC_ON_UNDO] = ops->on_undo,
	};

	if (call->type == CC_ON_ACK && ops->on_ack)
		ops->on_ack(cc, call->sample);
	else if (call->type == CC_ON_RESTART && ops->on_restart)
		ops->on_restart(cc, call->idle_ns, call->now_ns);
	else if (call->type == CC_RELEASE && ops->release)
		ops->release(cc);
	else if (call->type < CC_CALLS && plain[call->type])
		plain[call->type](cc, call->now_ns);
}

/* What a plug-in leaves out, as Reno would (RFC 5681) */
static void stand_in(struct cc *cc, uint32_t type)
{
	uint64_t least = 2ull * cc->mss;

	if (type == CC_ON_ENTER_RECOVERY)
		cc->cwnd_bytes = max_u64(cc->cwnd_bytes / 2, least);
	else if (type == CC_ON_RTO)
		cc->cwnd_bytes = cc->mss;
	else if (type == CC_ON_RESTART)
		cc->cwnd_bytes = min_u64(cc->cwnd_bytes, (uint64_t)RESTART_SEGS * cc->mss);
}

/* Says what is wrong with it */
static bool sane(struct cc_guard *g, const struct cc *cc, uint32_t type)
{
	const char *field = "cwnd_bytes", *wrong = NULL;
	uint64_t value = cc->cwnd_bytes;

	if (value < cc->mss) {
		wrong = "which is less than one segment";
	} else if (value > MOST) {
		wrong = "which is more than any path holds";
	} else if (cc->pacing_Bps && (cc->pacing_Bps < cc->mss || cc->pacing_Bps > MOST)) {
		field = "pacing_Bps";
		value = cc->pacing_Bps;
		wrong = "which is neither 0 nor from one segment a second to 1 TB a second";
	} else if (cc->spare > CC_SPARE_ALL) {
		field = "spare";
		value = cc->spare;
		wrong = "which is none of enum cc_spare";
	} else if (cc->spare_bytes > MOST) {
		field = "spare_bytes";
		value = cc->spare_bytes;
		wrong = "which is more than any path holds";
	}
	if (wrong)
		snprintf(g->why, sizeof(g->why), "%s set %s to %llu, %s", cc_call_name(type), field,
			 (unsigned long long)value, wrong);
	return !wrong;
}

/*
 * Calls the plug-in, and takes back what it may not change. Returns whether cc is as a
 * control leaves it.
 */
static bool checked(struct cc_guard *g, struct cc *cc, const struct cc_call *call)
{
	struct {
		uint32_t mss, in_recovery;
		uint64_t inflight_bytes, srtt_ns, min_rtt_ns;
	} in = {cc->mss, cc->in_recovery, cc->inflight_bytes, cc->srtt_ns, cc->min_rtt_ns};
	bool done = true;

	if (g->has & 1u << call->type)
		done = g->call(g, cc, call);
	else
		stand_in(cc, call->type);
	cc->ops = &g->ops;
	cc->mss = in.mss;
	cc->in_recovery = in.in_recovery;
	cc->inflight_bytes = in.inflight_bytes;
	cc->srtt_ns = in.srtt_ns;
	cc->min_rtt_ns = in.min_rtt_ns;
	return done && sane(g, cc, call->type);
}

static void count_fault(struct cc_guard *g)
{
	if (!g->faults++)
		memcpy(g->first, g->why, sizeof(g->first));
}

/* The connection goes on by the safe control, from window_bytes, and that one gets the call */
static void fall_back(struct cc_guard *g, struct cc *cc, const struct cc_call *call,
		      uint64_t window_bytes)
{
	if (!g->off && g->has & 1u << CC_RELEASE)
		g->call(g, cc, &(struct cc_call){.type = CC_RELEASE});
	__atomic_fetch_add(&g->fallen, 1, __ATOMIC_RELAXED);
	memset(cc->priv, 0, sizeof(cc->priv));
	cc->ops = g->safe;
	cc->pacing_Bps = 0;
	cc->spare = CC_SPARE_NONE;
	cc->spare_bytes = 0;
	cc->ops->init(cc, call->now_ns);
	cc->cwnd_bytes = max_u64(min_u64(window_bytes, MOST), cc->mss);
	if (call->type == CC_INIT)
		return;
	/* It has not heard of the loss that recovery is for */
	if (cc->in_recovery && call->type != CC_ON_ENTER_RECOVERY && call->type != CC_ON_RTO)
		cc->ops->on_enter_recovery(cc, call->now_ns);
	cc_ops_call(cc->ops, cc, call);
}

static void guarded(struct cc *cc, const struct cc_call *call)
{
	struct cc_guard *g = cc_guard_of(cc);
	uint64_t window_bytes = cc->cwnd_bytes;

	if (!g->off) {
		if (checked(g, cc, call))
			return;
		count_fault(g);
	}
	fall_back(g, cc, call, window_bytes);
}

static void guard_start(struct cc *cc, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_INIT, .now_ns = now_ns});
}

static void guard_on_ack(struct cc *cc, const struct cc_sample *s)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_ACK, .now_ns = s->now_ns, .sample = s});
}

static void guard_on_enter_recovery(struct cc *cc, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_ENTER_RECOVERY, .now_ns = now_ns});
}

static void guard_on_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_EXIT_RECOVERY, .now_ns = now_ns});
}

static void guard_on_rto(struct cc *cc, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_RTO, .now_ns = now_ns});
}

static void guard_on_restart(struct cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_RESTART, .idle_ns = idle_ns, .now_ns = now_ns});
}

static void guard_on_undo(struct cc *cc, uint64_t now_ns)
{
	guarded(cc, &(struct cc_call){.type = CC_ON_UNDO, .now_ns = now_ns});
}

static void guard_release(struct cc *cc)
{
	struct cc_guard *g = cc_guard_of(cc);

	if (!g->off && g->has & 1u << CC_RELEASE &&
	    !g->call(g, cc, &(struct cc_call){.type = CC_RELEASE}))
		count_fault(g);
}

void cc_guard_init(struct cc_guard *g, const char *name, const struct cc_ops *safe)
{
	snprintf(g->name, sizeof(g->name), "%s", name);
	g->safe = safe;
	g->ops.name = g->name;
	g->ops.init = guard_start;
	g->ops.on_ack = guard_on_ack;
	g->ops.on_enter_recovery = guard_on_enter_recovery;
	g->ops.on_exit_recovery = guard_on_exit_recovery;
	g->ops.on_rto = guard_on_rto;
	g->ops.on_restart = guard_on_restart;
	g->ops.on_undo = guard_on_undo;
	g->ops.release = guard_release;
}
