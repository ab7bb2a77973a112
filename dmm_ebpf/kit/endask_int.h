/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endask_int.h: what the files of a transport that another thread computes share. endask.c asks,
 * endanswer.c says what an answer means, endasked.c is the transport (struct end_ops); each knows
 * those before it.
 *
 * Invariants: an answer is copied before it is looked at, and nothing of it is believed; no lock is
 * held while somebody else is told of what it means.
 */
#ifndef DMM_KIT_ENDASK_INT_H
#define DMM_KIT_ENDASK_INT_H

#include "../userstack/core/end.h"
#include "endask.h"
#include "turns.h"

enum { ASKED_FLAGS = TH_FIN | TH_SYN | TH_RST | TH_PSH | TH_ACK }; /* what a segment may have */

struct asker {
	struct end_guard guard;
	struct turns turns;
	uint32_t has;
	bool failed; /* in the call that runs */
	uint64_t wants_bytes;
	uint64_t handles;
	uint64_t ends; /* atomic */
	uint64_t now_ns;
	struct end_ask ask;
};

/* An end that is asked about */
struct asked {
	union {
		struct end end;
		struct {
			END_MEMBERS
		};
	};
	uint64_t handle;
	uint64_t received;
	uint64_t told; /* the most that the peer was allowed to have sent, in bytes */
	uint64_t top;  /* the highest snd_nxt */
	uint64_t deadline_ns;
	uint64_t segments;
	uint32_t edge; /* behind all sequence numbers that it has used */
	bool held;     /* nothing may leave before go() */
	bool finished; /* the stream ends at snd.tail */
	bool peer_finished;
	bool last; /* once all has arrived: a RST */
};

static inline struct asked *asked_of(const struct end *e)
{
	return container_of(e, struct asked, end);
}

static inline struct asker *asker_of(const struct env *env, const struct asked *t)
{
	return end_guard_of(env, &t->end)->arg;
}

static inline bool asked_is_dead(const struct asked *t)
{
	return end_ends(&t->end)->f.phase == CONN_DEAD;
}

/* endask.c */
/* What the path has room for in a segment, bytes */
uint32_t asked_mss(const struct asked *t);
/* How many bytes more it may take in */
uint64_t asked_room(const struct env *env, const struct asked *t);
/* Whether the worker is asked such a question */
bool asked_has(const struct env *env, const struct asked *t, enum end_question type);
/* What the worker says to it. false: nothing that counts, and the call has failed */
bool asked_question(struct env *env, struct asked *t, enum end_question type, const struct pkt *pkt,
		    struct end_answer *answer);

/* endanswer.c */
/* Asks, and does what the answer means; false: the call has failed. Whoever is told of something
 * may end the connection meanwhile. */
bool asked_asks(struct env *env, struct asked *t, enum end_question type, const struct pkt *pkt,
		struct end_answer *answer);
void asked_set_deadline(struct env *env, struct asked *t, uint64_t deadline_ns);
/* Frees what it has; phase: END_CLOSED or END_WAITING */
void asked_release(struct env *env, struct asked *t, enum end_phase phase);
/* Tells its peer at once, if that waits for something */
void asked_reset_peer(struct env *env, struct asked *t);
/* Likewise, and it is over */
void asked_end_now(struct env *env, struct asked *t);

#endif /* DMM_KIT_ENDASK_INT_H */
