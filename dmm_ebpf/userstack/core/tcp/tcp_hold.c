/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_hold.c: how much of what the app has sent its kernel is told of before the peer has it.
 *
 * All that comes in on the inner leg is acknowledged at once but for the end of it, which waits
 * until the peer has acknowledged it on the outer leg. So whatever the app's kernel makes of
 * unacknowledged bytes holds for the peer: TCP_USER_TIMEOUT and tcp_retries2, SIOCOUTQ, SO_LINGER
 * (a FIN is held as well), the round trip and with it the retransmission timeout of requests,
 * Nagle's algorithm. A bulk transfer is not held up: while bytes come the end moves on.
 *
 * How much is held: the last two segments, which leaves a segment to a congestion window of three;
 * and a share of what the outer leg has yet to send, if that is more: the kernel may be held up by
 * that, but then the outer leg has four times as much to go on with.
 *
 * A peer that is slow is not dead, but to the kernel silence is all the same, and neither count of
 * retransmissions nor user time-out begins anew before a whole segment that it has sent again is
 * acknowledged (tcp_retransmit_timer.c's retrans_stamp, Linux net/ipv4/tcp_timer.c,
 * retransmits_timed_out()). So a retransmission of the first segment held is acknowledged if
 * another remains and the outer leg gets on: whatever it had to send again has arrived. The last
 * one, a FIN say, is when it comes again a second time and the peer has got more in between. Where
 * the peer has closed its window the retransmission is a question to the peer, whose answer
 * acknowledges it (hold_probe()). Otherwise it is passed over in silence; that it arrived is
 * reported with the ACK (RFC 2883), and timestamps are echoed as if it had not come (RFC 7323
 * section 4.3 would echo the latest), so that the kernel takes back what its timeout (RFC 3522) or
 * tail loss probe (RFC 8985 section 7.4) did to its congestion window.
 *
 * The other way round the peer is told at once of what it has sent. But an app's kernel that
 * answers no more, as a firewall of this host's drops what it sends, say, is answered for no more:
 * the peer hears nothing, of bytes or of probes, and what its own socket and namespace make of that
 * holds. Once there is an answer the peer is told of all that has come meanwhile.
 *
 * Invariants: what was acknowledged stays so; all is acknowledged that the peer has, at once.
 * Nothing is held that another segment could not be told from: while something is out of order (a
 * SACK block beyond bytes that are held would be taken for their loss), before both legs are open,
 * once this leg's FIN was sent and the app's has come.
 */
#include "tcp_end.h"
#include "tcp_int.h"

enum {
	HELD_SEGMENTS = 2,
	UNSENT_SHARE = 4,
	MOST_BYTES = 64 * 1024,
	STEP_SHARE = 4,	    /* of what is held, that is worth an ACK */
	APP_HEARD_MS = 500, /* so long ago the app's kernel was there, and need not be asked */
	/* sent again so often, in 1.4 s, without an answer; Linux leaves one of two probes within
	   half a second unanswered (net.ipv4.tcp_invalid_ratelimit) */
	MUTE_TRIES = 3,
};

static bool holds(const struct tcb *t)
{
	const uint32_t from_app = 1u << TCP_ESTABLISHED | 1u << TCP_CLOSE_WAIT |
				  1u << TCP_FIN_WAIT1 | 1u << TCP_FIN_WAIT2;

	return !tcb_is_outer(t) && !t->ooo && (1u << t->state & from_app) &&
	       tcb_peer(t)->phase == END_OPEN && !(t->flags & TF_RST_DUE);
}

bool hold_is_mute(const struct tcb *t)
{
	return tcb_is_outer(t) && tcb_of(tcb_peer(t))->retries >= MUTE_TRIES;
}

void hold_app_answers(struct env *env, struct tcb *t)
{
	struct end *outer = tcb_peer(t);

	if (tcb_is_outer(t) || t->retries < MUTE_TRIES || end_ops_of(env, outer) != &tcp_outer)
		return;
	tcb_of(outer)->flags |= TF_ACK_NOW;
	end_ready(env, outer);
}

uint64_t hold_ack(const struct tcb *t)
{
	const struct end *outer = tcb_peer(t);
	const struct hold *h = tcb_hold(t);
	uint64_t told, few, share;

	if (unlikely(hold_is_mute(t)))
		return t->last_ack_sent;
	if (!holds(t) || outer->snd_una >= t->rcv_nxt)
		return t->rcv_nxt;
	told = max_u64(max_u64(outer->snd_una, t->last_ack_sent), h->lifted);
	few = max_u64(h->seg[0], t->rcv_nxt - min_u64(t->rcv_nxt, HELD_SEGMENTS * t->mss));
	share = t->rcv_nxt -
		min_u64(t->rcv_nxt, min_u64(end_unsent(outer) / UNSENT_SHARE, MOST_BYTES));
	return min_u64(max_u64(told, min_u64(few, share)), t->rcv_nxt);
}

void hold_told(struct tcb *t, uint64_t ack)
{
	struct hold *h = tcb_hold(t);

	if (h->again_end && ack >= h->again_end) {
		if (t->flags & TF_SACK) {
			t->dsack_start = h->again_start;
			t->dsack_end = h->again_end;
		}
		h->again_start = h->again_end = 0;
	}
	if (ack == t->rcv_nxt)
		h->seg[0] = h->seg[1] = h->lifted = 0;
}

void hold_tell(struct env *env, struct tcb *t)
{
	uint64_t ack = hold_ack(t), step;

	if (ack <= t->last_ack_sent)
		return;
	step = max_u64(t->mss, (t->rcv_nxt - ack) / STEP_SHARE);
	if (ack < t->rcv_nxt && ack - t->last_ack_sent < step && t->unacked_segs < 2)
		return; /* the rest of it will come with the peer's ACK at the latest */
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

void hold_arrived(struct tcb *t, uint64_t seq)
{
	struct hold *h = tcb_hold(t);

	h->seg[0] = h->seg[1];
	h->seg[1] = seq;
}

void hold_lift(struct env *env, struct tcb *t, uint64_t upto)
{
	struct hold *h = tcb_hold(t);

	h->lifted = max_u64(h->lifted, upto);
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

bool hold_again(struct env *env, struct tcb *t, int64_t start, int64_t end)
{
	struct end *outer = tcb_peer(t);
	struct hold *h = tcb_hold(t);

	if (!holds(t) || start < (int64_t)t->last_ack_sent || end > (int64_t)t->rcv_nxt ||
	    end <= start)
		return false;
	bool goes_on = (uint64_t)end == h->again_end && outer->snd_una > h->peer_had;

	h->again_start = (uint64_t)start;
	h->again_end = (uint64_t)end;
	h->peer_had = outer->snd_una;
	switch (end_ops_of(env, outer)->ask(env, outer)) {
	case END_GETS_ON:
		if (goes_on || end < (int64_t)t->rcv_nxt)
			hold_lift(env, t, (uint64_t)end);
		break;
	case END_STANDS:
		break;
	case END_ASKS:
		t->owed = true;
		break;
	}
	return true;
}

/*
 * A keep-alive or a zero-window probe (RFC 9293 section 3.8.6.1, RFC 1122 section 4.2.3.6) asks for
 * who is beyond the other leg: it is answered when that one has been heard of, so that the app's
 * and the peer's own time-outs hold. What is in flight on the outer leg asks already.
 */
static bool is_probe(const struct tcb *t, const struct pkt *pkt, int64_t seq)
{
	return seq == (int64_t)t->rcv_nxt - 1 && !pkt->payload_len &&
	       (pkt->flags & (TH_SYN | TH_FIN | TH_RST | TH_ACK)) == TH_ACK &&
	       tcp_ack_ok(t, pkt->ack);
}

/*
 * The app's kernel answers such probes twice a second at most (net.ipv4.tcp_invalid_ratelimit), and
 * not at all once its socket is gone: the peer's probes of a window that we have closed, of an app
 * that has just been heard of, and of one that has closed, are answered here.
 */
static bool app_answers(const struct tcb *t, uint64_t now_ns)
{
	const struct tcb *inner = tcb_of(tcb_peer(t));

	return t->rcv_adv > t->rcv_nxt && inner->state == TCP_ESTABLISHED &&
	       now_ns - inner->last_rx_ns > APP_HEARD_MS * NS_PER_MS;
}

bool hold_probe(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq, uint64_t now_ns)
{
	struct end *other = tcb_peer(t);

	if (!is_probe(t, pkt, seq) || other->phase != END_OPEN || end_fin_sent(other))
		return false;
	if (tcb_is_outer(t) && !app_answers(t, now_ns))
		return false;
	t->owed = true;
	end_ops_of(env, other)->ask(env, other);
	return true;
}

void tcp_heard(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	if (!tcb_is_outer(t)) {
		hold_lift(env, t, tcb_hold(t)->again_end);
		return;
	}
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

bool hold_pending(const struct tcb *t)
{
	return hold_ack(t) < t->rcv_nxt;
}
