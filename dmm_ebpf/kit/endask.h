/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endask.h: a transport that another thread computes, as one written in Python.
 *
 * The thread decides, and moves no byte: a call is a question with what it may want to know of the
 * end; the answer says what has arrived, what is taken of a segment, what the next packet is, how
 * far the end is. What that means for stream, timer and the other end is done here. How the two
 * threads speak is told in turns.h.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_KIT_ENDASK_H
#define DMM_KIT_ENDASK_H

#include "../userstack/core/guard/end_guard.h"

enum end_question {
	END_QUESTION_OPEN = 0,
	END_QUESTION_INPUT,
	END_QUESTION_OUTPUT,
	END_QUESTION_TIMER,
	END_QUESTION_ROOM,
	END_QUESTION_PROBE,   /* the peer is to be asked whether it is there */
	END_QUESTION_RESET,   /* which packet ends the connection for the peer at once? */
	END_QUESTION_RELEASE, /* nothing else is to be done */
	END_QUESTIONS
};

/* So many connections may have ended before the worker is told */
enum { END_ASK_RELEASED = 64, END_ASK_PAYLOAD = 65535 };

/* A segment: one that came, or the next packet, which has len bytes of the stream from byte from */
struct end_ask_segment {
	uint32_t there; /* 0: there is none */
	uint32_t flags; /* enum tcp_flag */
	uint32_t seq;
	uint32_t ack;
	uint32_t wnd;
	uint32_t mss; /* 0: no such option */
	uint64_t from;
	uint32_t len;
	uint32_t pad;
};

enum end_ask_lost {
	END_LOST_NOT = 0,
	END_LOST_RESET,	  /* the peer has ended it */
	END_LOST_GAVE_UP, /* it was asked long enough */
};

struct end_answer {
	uint64_t una; /* snd_una, snd_nxt and phase of struct end */
	uint64_t nxt;
	uint64_t deadline_ns; /* UINT64_MAX: none */
	uint32_t phase;
	uint32_t ready;	    /* 1: it may have something to send */
	uint32_t take_from; /* of the segment's payload; what finds no memory is not taken */
	uint32_t take_len;
	uint32_t peer_finished; /* 1: nothing comes behind what it has received */
	uint32_t lost;		/* enum end_ask_lost */
	uint32_t error;		/* errno, of END_LOST_RESET */
	uint32_t pad;
	struct end_ask_segment next; /* of END_QUESTION_OUTPUT and END_QUESTION_RESET */
};

/*
 * A question. The worker changes the answer, which is what holds now, or sets failed and why; it
 * forgets the connections that are released, and sets their number to 0.
 */
struct end_ask {
	uint32_t type; /* enum end_question */
	uint32_t failed;
	uint64_t handle; /* of the end; not 0 */
	uint64_t now_ns;
	uint64_t head;	       /* bytes of its stream: below it all has arrived ... */
	uint64_t tail;	       /* ... and from here on there are none yet */
	uint64_t received;     /* bytes that it has taken in */
	uint64_t room;	       /* how many more it may take in now */
	uint32_t finished;     /* 1: its stream ends at tail */
	uint32_t first_number; /* for a sequence number that cannot be guessed (RFC 6528) */
	uint32_t mss;	       /* what the path has room for in a segment */
	uint32_t syn_retries;
	uint32_t retries;
	uint32_t family; /* 2: IPv4, 10: IPv6 */
	struct end_ask_segment came;
	struct end_answer answer;
	char why[END_WHY_BYTES];
	uint32_t released_n;
	uint32_t pad;
	uint64_t released[END_ASK_RELEASED]; /* handles */
	uint8_t payload[END_ASK_PAYLOAD];    /* of the segment that came */
	uint8_t pad2;
};

/*
 * has: bits of enum end_question that the worker is asked; those up to END_QUESTION_TIMER and
 * END_QUESTION_RELEASE are among them. wants_bytes: how much unsent is worth holding for an end.
 * NULL: no memory.
 */
struct end_guard *end_asker_create(const char *name, uint32_t has, uint64_t wants_bytes,
				   uint64_t patience_ns);
/* When no end has it and no worker is in end_asker_next(). */
void end_asker_destroy(struct end_guard *guard);

/* For the worker: the last question is answered; waits for the next. NULL: there will be none. */
struct end_ask *end_asker_next(struct end_guard *guard);
/* The name of a question, as a method is called */
const char *end_question_name(uint32_t type);
/* How many ends have it */
uint64_t end_asker_ends(const struct end_guard *guard);

/* There will be none. */
void end_asker_end(struct end_guard *guard);

#endif /* DMM_KIT_ENDASK_H */
