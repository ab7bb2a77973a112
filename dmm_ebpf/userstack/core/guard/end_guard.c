/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end_guard.c: see end_guard.h.
 *
 * Behind the plug-in's own state an end keeps whether it is broken, and what a RST to its peer
 * needs, as its packets have told. Who calls it may be in the midst of something (the other end,
 * the relay), so a fault ends nothing at once: the end's timer is made due, and what that does is
 * the guard's to do.
 */
#include "end_guard.h"

#include "../base/stream.h"
#include "../base/wheel.h"
#include "../end.h"
#include "../wire/ctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct guard_ops {
	struct end_ops ops;
	struct end_guard *guard;
};

static const char *const names[END_CALLS] = {
	"init",	  "open",  "go",  "input", "output", "timer", "abort", "info",	   "finish", "room",
	"passed", "wants", "ask", "heard", "urgent", "path",  "icmp",  "is_newer", "edge"};

const char *end_call_name(uint32_t type)
{
	return type < END_CALLS ? names[type] : "?";
}

/* Bit END_CALL_x: it has that function */
static uint32_t has(const struct end_ops *ops)
{
	return !!ops->init << END_CALL_INIT | !!ops->open << END_CALL_OPEN |
	       !!ops->go << END_CALL_GO | !!ops->input << END_CALL_INPUT |
	       !!ops->output << END_CALL_OUTPUT | !!ops->timer << END_CALL_TIMER |
	       !!ops->abort << END_CALL_ABORT | !!ops->info << END_CALL_INFO |
	       !!ops->finish << END_CALL_FINISH | !!ops->room << END_CALL_ROOM |
	       !!ops->passed << END_CALL_PASSED | !!ops->wants << END_CALL_WANTS |
	       !!ops->ask << END_CALL_ASK;
}

const char *end_ops_lack(const struct end_ops *ops)
{
	uint32_t lacks = ~has(ops) & ((1u << END_CALL_NEEDED) - 1);

	return lacks ? names[__builtin_ctz(lacks)] : NULL;
}

/* Functions that tell an end something, and nothing else */
static void plain_call(const struct end_ops *ops, const struct end_call *call)
{
	void (*plain[END_CALLS])(struct env *, struct end *) = {
		[END_CALL_INIT] = ops->init,	 [END_CALL_GO] = ops->go,
		[END_CALL_FINISH] = ops->finish, [END_CALL_ROOM] = ops->room,
		[END_CALL_PASSED] = ops->passed, [END_CALL_HEARD] = ops->heard,
		[END_CALL_URGENT] = ops->urgent,
	};

	if (call->type < END_CALLS && plain[call->type])
		plain[call->type](call->env, call->e);
}

void end_ops_call(const struct end_ops *ops, struct end_call *call)
{
	struct env *env = call->env;
	struct end *e = call->e;

	switch (call->type) {
	case END_CALL_OPEN:
		ops->open(env, e, call->pkt, call->now_ns);
		break;
	case END_CALL_INPUT:
		ops->input(env, e, call->pkt, call->now_ns);
		break;
	case END_CALL_OUTPUT:
		call->result = ops->output(env, e, call->buf, (uint32_t)call->cap, call->meta,
					   call->now_ns);
		break;
	case END_CALL_TIMER:
		ops->timer(env, e, call->now_ns);
		break;
	case END_CALL_ABORT:
		ops->abort(env, e, (enum end_abort)call->what, call->now_ns);
		break;
	case END_CALL_INFO:
		ops->info(env, e, call->info);
		break;
	case END_CALL_WANTS:
		call->result = ops->wants(env, e);
		break;
	case END_CALL_ASK:
		call->result = ops->ask(env, e);
		break;
	case END_CALL_PATH:
		ops->path(env, e, (enum end_path)call->what);
		break;
	case END_CALL_ICMP:
		call->result = ops->icmp(env, e, call->pkt);
		break;
	case END_CALL_IS_NEWER:
		call->result = ops->is_newer(env, e, call->pkt);
		break;
	case END_CALL_EDGE:
		call->result = ops->edge(env, e);
		break;
	default:
		plain_call(ops, call);
	}
}

/* ---- what it leaves ---- */

struct end_guard *end_guard_of(const struct env *env, const struct end *e)
{
	return container_of(end_ops_of(env, e), struct guard_ops, ops)->guard;
}

struct kept {
	uint32_t seq; /* behind all that it has sent */
	uint32_t ack;
	bool acks; /* ack is one */
	bool sent; /* anything at all, so that its peer can know of it */
	bool broken;
	uint8_t pad[5];
};

_Static_assert(sizeof(struct kept) % 8 == 0, "whole words");

static struct kept *kept_of(const struct end_guard *g, const struct end *e)
{
	return (struct kept *)(void *)((char *)(uintptr_t)e + g->own->state_bytes);
}

/* What of an end is not its transport's to change */
struct fixed {
	uint16_t at;
	int16_t to_peer;
	uint8_t leg;
	uint8_t transport;
};

static struct fixed fixed_of(const struct end *e)
{
	return (struct fixed){e->at, e->to_peer, e->leg, e->transport};
}

static void note_sent(struct kept *kept, const struct pkt *pkt)
{
	uint32_t seq = pkt->seq + pkt->payload_len + !!(pkt->flags & (TH_SYN | TH_FIN));

	if (!kept->sent || (int32_t)(seq - kept->seq) > 0)
		kept->seq = seq;
	kept->sent = !(pkt->flags & TH_RST);
	kept->acks = pkt->flags & TH_ACK;
	kept->ack = pkt->ack;
}

/* Whether the packet is the connection's; kept of its end */
static bool same_connection(const struct end_call *call, struct kept *kept)
{
	const struct dmm_core_addr_pair *pair = &end_ends(call->e)->f.pair;
	struct pkt pkt;

	if (wire_parse(call->buf, (uint32_t)call->result, false, &pkt) != WIRE_TCP ||
	    pkt.sport_be != pair->lport_be || pkt.dport_be != pair->rport_be ||
	    memcmp(pkt.saddr, pair->laddr, 16) != 0 || memcmp(pkt.daddr, pair->raddr, 16) != 0)
		return false;
	note_sent(kept, &pkt);
	return true;
}

/* What is wrong with what the call has left; NULL: nothing */
static const char *nonsense(const struct end_call *call, const struct fixed *before,
			    struct kept *kept)
{
	const struct end *e = call->e;
	struct fixed now = fixed_of(e);

	if (memcmp(&now, before, sizeof(now)) != 0)
		return "changed what is not its to change";
	if (e->phase > END_WAITING)
		return "left a phase that there is not";
	if (e->snd.head > e->snd.tail)
		return "dropped more of the stream than there is";
	if (e->phase == END_OPEN && (e->snd_una > e->snd_nxt || e->snd_nxt > e->snd.tail + 2))
		return "left positions that are none of the stream's";
	if (call->type != END_CALL_OUTPUT || !call->result)
		return NULL;
	if (call->result > call->cap)
		return "made a packet that is longer than its room";
	return same_connection(call, kept) ? NULL : "made a packet that is not the connection's";
}

/* ---- calls ---- */

static void drop(struct env *env, struct end *e)
{
	stream_release(&env->mem, &e->snd);
	wheel_cancel(&env->wheel, &e->timer);
	list_del(&e->ready);
	e->phase = END_CLOSED;
	e->owed = false;
}

/* In the core's next turn its connection ends */
static void break_end(struct end_guard *g, const struct end_call *call)
{
	kept_of(g, call->e)->broken = true;
	wheel_arm(&call->env->wheel, &call->e->timer, 0);
}

/* The peer of a broken end is told, once */
static void reset_peer(struct env *env, const struct end *e, struct kept *kept)
{
	const struct ends *ends = end_ends(e);
	struct wire_seg rst = {.seq = kept->seq,
			       .flags = kept->acks ? TH_RST | TH_ACK : TH_RST,
			       .ack = kept->acks ? kept->ack : 0};
	struct wire_dir dir;

	if (!kept->sent)
		return;
	kept->sent = false;
	ctl_dir(&ends->f.pair, e->leg, &dir);
	ctl_push_tcp(env, e->leg, ends->link, &dir, &rst);
	env->counters[DMM_CORE_RST_OUT]++;
}

static void fault(struct end_guard *g, const struct end_call *call)
{
	if (!g->faults++)
		memcpy(g->first, g->why, sizeof(g->first));
	break_end(g, call);
}

static bool is_broken(const struct end_guard *g, const struct end *e)
{
	return g->off || kept_of(g, e)->broken;
}

static bool is_dead(const struct end *e)
{
	return end_ends(e)->f.phase == CONN_DEAD;
}

/* Returns whether the plug-in did it; else call->result is 0, and its end is broken */
static bool guarded(struct end_guard *g, struct end_call *call)
{
	struct kept *kept = kept_of(g, call->e);
	struct fixed before = fixed_of(call->e);
	const char *wrong = NULL;
	bool done;

	if (is_dead(call->e) || kept->broken)
		return false;
	if (g->off) {
		break_end(g, call);
		return false;
	}
	done = g->call(g, call);
	wrong = done ? nonsense(call, &before, kept) : NULL;
	if (!done || wrong) {
		if (wrong)
			snprintf(g->why, sizeof(g->why), "%s %s", end_call_name(call->type), wrong);
		call->e->at = before.at;
		call->e->to_peer = before.to_peer;
		call->e->leg = before.leg;
		call->e->transport = before.transport;
		call->result = 0;
		fault(g, call);
	}
	if (is_dead(call->e)) /* whoever was told of something has ended it */
		drop(call->env, call->e);
	return done && !wrong;
}

static void tell(struct env *env, struct end *e, enum end_call_type type)
{
	guarded(end_guard_of(env, e), &(struct end_call){.type = type, .env = env, .e = e});
}

/* const, since a plug-in that answers wrongly is broken, which its end remembers */
static uint64_t asked(const struct env *env, const struct end *e, enum end_call_type type,
		      const struct pkt *pkt)
{
	struct end_call call = {.type = type,
				.env = (struct env *)(uintptr_t)env,
				.e = (struct end *)(uintptr_t)e,
				.pkt = pkt};

	guarded(end_guard_of(env, e), &call);
	return call.result;
}

static void guard_start(struct env *env, struct end *e)
{
	list_init(&e->ready);
	wheel_node_init(&e->timer);
	tell(env, e, END_CALL_INIT);
}

static void guard_open(struct env *env, struct end *e, const struct pkt *syn, uint64_t now_ns)
{
	guarded(end_guard_of(env, e),
		&(struct end_call){
			.type = END_CALL_OPEN, .env = env, .e = e, .pkt = syn, .now_ns = now_ns});
}

static void guard_go(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_GO);
}

static void guard_input(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns)
{
	guarded(end_guard_of(env, e),
		&(struct end_call){
			.type = END_CALL_INPUT, .env = env, .e = e, .pkt = pkt, .now_ns = now_ns});
}

static uint32_t guard_output(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
			     struct dmm_tx_meta *meta, uint64_t now_ns)
{
	struct end_call call = {.type = END_CALL_OUTPUT,
				.env = env,
				.e = e,
				.now_ns = now_ns,
				.buf = buf,
				.cap = cap,
				.meta = meta};

	guarded(end_guard_of(env, e), &call);
	return (uint32_t)call.result;
}

static void guard_timer(struct env *env, struct end *e, uint64_t now_ns)
{
	struct end_guard *g = end_guard_of(env, e);

	if (!is_broken(g, e)) {
		guarded(g, &(struct end_call){
				   .type = END_CALL_TIMER, .env = env, .e = e, .now_ns = now_ns});
	} else if (g->off) {
		env->up->fallen(env, e, now_ns);
	} else {
		env->up->reset(env, e, ECONNABORTED, now_ns);
	}
}

/* Whatever the plug-in does: an end that is over is on no list, and holds nothing */
static void guard_abort(struct env *env, struct end *e, enum end_abort how, uint64_t now_ns)
{
	struct end_guard *g = end_guard_of(env, e);

	bool broken = is_broken(g, e);

	if (broken && e->phase != END_CLOSED) {
		__atomic_fetch_add(&g->fallen, 1, __ATOMIC_RELAXED);
		reset_peer(env, e, kept_of(g, e));
	}
	if (broken && how == END_ABORT_FREE && g->forget)
		g->forget(g, env, e);
	if (!guarded(g, &(struct end_call){.type = END_CALL_ABORT,
					   .what = how,
					   .env = env,
					   .e = e,
					   .now_ns = now_ns}) ||
	    how == END_ABORT_FREE || how == END_ABORT_PEER)
		drop(env, e);
}

static void guard_info(const struct env *env, const struct end *e, struct dmm_conn_info *info)
{
	guarded(end_guard_of(env, e), &(struct end_call){.type = END_CALL_INFO,
							 .env = (struct env *)(uintptr_t)env,
							 .e = (struct end *)(uintptr_t)e,
							 .info = info});
}

static void guard_finish(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_FINISH);
}

static void guard_room(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_ROOM);
}

static void guard_passed(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_PASSED);
}

static uint64_t guard_wants(const struct env *env, const struct end *e)
{
	return asked(env, e, END_CALL_WANTS, NULL);
}

static enum end_care guard_ask(struct env *env, struct end *e)
{
	uint64_t care = asked(env, e, END_CALL_ASK, NULL);

	return care <= END_GETS_ON ? (enum end_care)care : END_GETS_ON;
}

static void guard_heard(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_HEARD);
}

static void guard_urgent(struct env *env, struct end *e)
{
	tell(env, e, END_CALL_URGENT);
}

static void guard_path(struct env *env, struct end *e, enum end_path what)
{
	guarded(end_guard_of(env, e),
		&(struct end_call){.type = END_CALL_PATH, .what = what, .env = env, .e = e});
}

static bool guard_icmp(struct env *env, struct end *e, const struct pkt *pkt)
{
	return asked(env, e, END_CALL_ICMP, pkt);
}

static bool guard_is_newer(const struct env *env, const struct end *e, const struct pkt *syn)
{
	return asked(env, e, END_CALL_IS_NEWER, syn);
}

static uint32_t guard_edge(const struct env *env, const struct end *e)
{
	return (uint32_t)asked(env, e, END_CALL_EDGE, NULL);
}

uint32_t end_guard_init(struct end_guard *g, const char *name)
{
	const struct end_ops *own = g->own;
	struct guard_ops *made = malloc(sizeof(*made));

	if (!made)
		return 0;
	snprintf(g->name, sizeof(g->name), "%s", name);
	made->guard = g;
	made->ops = (struct end_ops){
		.name = g->name,
		.state_bytes = own->state_bytes + (uint32_t)sizeof(struct kept),
		.init = guard_start,
		.open = guard_open,
		.go = guard_go,
		.input = guard_input,
		.output = guard_output,
		.timer = guard_timer,
		.abort = guard_abort,
		.info = guard_info,
		.finish = guard_finish,
		.room = guard_room,
		.passed = guard_passed,
		.wants = guard_wants,
		.ask = guard_ask,
		.heard = own->heard ? guard_heard : NULL,
		.urgent = own->urgent ? guard_urgent : NULL,
		.path = own->path ? guard_path : NULL,
		.icmp = own->icmp ? guard_icmp : NULL,
		.is_newer = own->is_newer ? guard_is_newer : NULL,
		.edge = own->edge ? guard_edge : NULL,
	};
	g->ops = &made->ops;
	return 1;
}

void end_guard_deinit(struct end_guard *g)
{
	free((void *)(uintptr_t)g->ops);
	g->ops = NULL;
}
