/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim_sender.c: an idealised SACK sender: every transmission is told apart, loss is detected as
 * RACK does (RFC 8985) with a reordering window of a quarter of the minimum RTT (none in recovery,
 * unless the path reorders), and the receive window is without limit. What it does not idealise is
 * what a congestion control sees: rate samples (draft-ietf-ccwg-bbr, section 4.1.2), recovery, RTO.
 */
#include "ccsim.h"

#include <stdlib.h>
#include <string.h>

#define RTO_MIN_NS (200 * CCSIM_MS)

static uint64_t max64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void min_rtt_update(struct flow *f, uint64_t rtt, uint64_t now)
{
	if (now - f->minrtt[0].ns > 5 * CCSIM_S) {
		f->minrtt[1] = f->minrtt[0];
		f->minrtt[0].ns = now;
		f->minrtt[0].rtt = rtt;
	}
	if (rtt < f->minrtt[0].rtt)
		f->minrtt[0].rtt = rtt;
	f->cc.min_rtt_ns =
		f->minrtt[0].rtt < f->minrtt[1].rtt ? f->minrtt[0].rtt : f->minrtt[1].rtt;
}

static void rtt_update(struct flow *f, uint64_t rtt, uint64_t now)
{
	uint64_t srtt = f->cc.srtt_ns, diff;

	min_rtt_update(f, rtt, now);
	if (!srtt) {
		f->cc.srtt_ns = rtt;
		f->rttvar_ns = rtt / 2;
		return;
	}
	diff = srtt > rtt ? srtt - rtt : rtt - srtt;
	f->rttvar_ns = f->rttvar_ns - f->rttvar_ns / 4 + diff / 4;
	f->cc.srtt_ns = srtt - srtt / 8 + rtt / 8;
}

static void rto_arm(struct sim *sim, struct flow *f)
{
	uint64_t rto =
		f->cc.srtt_ns ? f->cc.srtt_ns + max64(4 * f->rttvar_ns, RTO_MIN_NS) : CCSIM_S;

	f->rto_deadline_ns = sim->now_ns + (rto << f->rto_shift);
	if (f->rto_timer_ns)
		return;
	f->rto_timer_ns = f->rto_deadline_ns;
	sim_at(f->rto_timer_ns, EV_RTO, f->index, 0);
}

void sender_start(struct sim *sim, struct flow *f)
{
	f->cc.cwnd_bytes = 10ull * CCSIM_MSS;
	f->cc.ops->init(&f->cc, sim->now_ns);
	sender_send(sim, f);
}

/* Has the application something to send now? */
static int has_data(const struct sim *sim, struct flow *f)
{
	/* acknowledged after all: it was reordered, not lost */
	while (f->rtx_n > f->rtx_head && f->seg_acked[f->rtx[f->rtx_head]])
		f->rtx_head++;
	if (f->rtx_n > f->rtx_head)
		return 1;
	if (f->size_segs && f->seg_next >= f->size_segs)
		return 0;
	if (f->asked.stop_ns && sim->now_ns >= f->asked.stop_ns)
		return 0;
	if (!f->asked.app_on_ns)
		return 1;
	return (sim->now_ns - f->asked.start_ns) % (f->asked.app_on_ns + f->asked.app_off_ns) <
	       f->asked.app_on_ns;
}

/* An application that pauses sends again by itself */
static void wake_later(struct sim *sim, struct flow *f)
{
	uint64_t cycle = f->asked.app_on_ns + f->asked.app_off_ns;

	if (!f->asked.app_on_ns || f->app_timer_ns)
		return;
	f->app_timer_ns = sim->now_ns + cycle - (sim->now_ns - f->asked.start_ns) % cycle;
	sim_at(f->app_timer_ns, EV_WAKE, f->index, 0);
}

static void transmit(struct sim *sim, struct flow *f)
{
	uint32_t cap = f->seg_cap;
	struct tx *tx;

	if (!f->cc.inflight_bytes) {
		f->first_tx_ns = sim->now_ns;
		f->delivered_ns = sim->now_ns;
	}
	f->tx = sim_grow(f->tx, f->tx_n + 1, &f->tx_cap, sizeof(*f->tx));
	tx = &f->tx[f->tx_n];
	memset(tx, 0, sizeof(*tx));
	if (f->rtx_n > f->rtx_head) {
		tx->seg = f->rtx[f->rtx_head++];
	} else {
		tx->seg = f->seg_next++;
		f->seg_acked = sim_grow(f->seg_acked, f->seg_next, &f->seg_cap, 1);
		f->seg_rcvd = sim_grow(f->seg_rcvd, f->seg_next, &cap, 1);
	}
	tx->sent_ns = sim->now_ns;
	tx->first_tx_ns = f->first_tx_ns;
	tx->delivered = f->delivered;
	tx->delivered_ns = f->delivered_ns;
	tx->lost = f->lost;
	tx->app_limited = f->app_limited_until != 0;
	f->cc.inflight_bytes += CCSIM_MSS;
	tx->inflight = f->cc.inflight_bytes;
	f->last_send_ns = sim->now_ns;
	if (!f->rto_deadline_ns)
		rto_arm(sim, f);
	sim_transmit(sim, f, f->tx_n++);
}

void sender_send(struct sim *sim, struct flow *f)
{
	uint64_t slack = sim->path.burst_ns;

	if (sim->now_ns < f->asked.start_ns)
		return;
	while (f->cc.inflight_bytes + CCSIM_MSS <= f->cc.cwnd_bytes) {
		if (!has_data(sim, f)) {
			f->app_limited_until = f->delivered + f->cc.inflight_bytes + 1;
			wake_later(sim, f);
			break;
		}
		if (f->cc.pacing_Bps && f->next_send_ns > sim->now_ns) {
			if (!f->pace_timer_ns) {
				f->pace_timer_ns = f->next_send_ns + slack;
				sim_at(f->pace_timer_ns, EV_PACE, f->index, 0);
			}
			break;
		}
		if (!f->cc.inflight_bytes && f->last_send_ns && f->cc.ops->on_restart &&
		    sim->now_ns - f->last_send_ns > f->cc.srtt_ns)
			f->cc.ops->on_restart(&f->cc, sim->now_ns - f->last_send_ns, sim->now_ns);
		if (f->cc.pacing_Bps) {
			if (f->next_send_ns + slack + CCSIM_MS / 1000 < sim->now_ns)
				f->next_send_ns = sim->now_ns;
			f->next_send_ns += CCSIM_MSS * CCSIM_S / f->cc.pacing_Bps;
		}
		transmit(sim, f);
	}
}

static void mark_lost(struct sim *sim, struct flow *f, struct tx *tx)
{
	f->lost_pkts += sim->now_ns >= sim->path.warm_ns;
	tx->state = TX_LOST;
	f->cc.inflight_bytes -= CCSIM_MSS;
	f->lost += CCSIM_MSS;
	f->rtx = sim_grow(f->rtx, f->rtx_n + 1, &f->rtx_cap, sizeof(*f->rtx));
	f->rtx[f->rtx_n++] = tx->seg;
}

/*
 * Marks what RACK holds for lost by now; arms the timer for what it will. Returns the bytes marked.
 */
static uint64_t rack_detect(struct sim *sim, struct flow *f)
{
	uint64_t reo = max64(f->cc.min_rtt_ns / 4, CCSIM_MS), before = f->lost, due;
	uint32_t i;

	/* RFC 8985 section 6.2 step 4: no wait in recovery as long as nothing was ever reordered */
	if (f->cc.in_recovery && !sim->path.reordering)
		reo = 0;

	for (i = f->tx_head; i < f->rack_tx; i++) {
		struct tx *tx = &f->tx[i];

		if (tx->state != TX_FLYING)
			continue;
		due = tx->sent_ns + f->rack_rtt_ns + reo;
		if (due > sim->now_ns) {
			if (!f->reo_timer_ns) {
				f->reo_timer_ns = due;
				sim_at(due, EV_REO, f->index, 0);
			}
			break;
		}
		mark_lost(sim, f, tx);
	}
	while (f->tx_head < f->tx_n && f->tx[f->tx_head].state != TX_FLYING)
		f->tx_head++;
	return f->lost - before;
}

static void recovery_update(struct sim *sim, struct flow *f, uint64_t lost)
{
	while (f->una < f->seg_next && f->seg_acked[f->una])
		f->una++;
	if (f->cc.in_recovery && f->una >= f->recovery_point) {
		f->cc.in_recovery = 0;
		f->cc.ops->on_exit_recovery(&f->cc, sim->now_ns);
	}
	if (lost && !f->cc.in_recovery) {
		f->cc.in_recovery = 1;
		f->recovery_point = f->seg_next;
		f->cc.ops->on_enter_recovery(&f->cc, sim->now_ns);
	}
}

/* Takes newly arrived transmissions into the sample, as tcp_rate_skb_delivered of Linux. Returns
 * the newest.
 */
static struct tx *take_acked(struct sim *sim, struct flow *f, uint64_t from, uint64_t to,
			     struct cc_sample *s)
{
	struct tx *newest = NULL;

	for (; from < to; from++) {
		struct tx *tx = &f->tx[f->pend[from]];

		if (tx->state == TX_ACKED)
			continue;
		if (tx->state == TX_FLYING)
			f->cc.inflight_bytes -= CCSIM_MSS;
		else
			f->spurious_pkts += sim->now_ns >= sim->path.warm_ns;
		tx->state = TX_ACKED;
		if (f->seg_acked[tx->seg])
			continue;
		f->seg_acked[tx->seg] = 1;
		f->delivered += CCSIM_MSS;
		f->delivered_ns = sim->now_ns;
		s->acked_bytes += CCSIM_MSS;
		if (!newest || tx->delivered > newest->delivered ||
		    (tx->delivered == newest->delivered && tx > newest))
			newest = tx;
	}
	return newest;
}

void sender_ack(struct sim *sim, struct flow *f, uint64_t from, uint64_t to)
{
	struct cc_sample s = {.now_ns = sim->now_ns, .prior_inflight_bytes = f->cc.inflight_bytes};
	struct tx *newest = take_acked(sim, f, from, to, &s);
	uint64_t send_ns, ack_ns;
	uint32_t una = f->una;

	if (f->app_limited_until && f->delivered > f->app_limited_until)
		f->app_limited_until = 0;
	if (newest) {
		s.rtt_ns = sim->now_ns - newest->sent_ns;
		rtt_update(f, s.rtt_ns, sim->now_ns);
		if (newest >= f->tx + f->rack_tx) {
			f->rack_tx = (uint32_t)(newest - f->tx);
			f->rack_rtt_ns = s.rtt_ns;
		}
		f->rto_shift = 0;
	}
	s.lost_bytes = rack_detect(sim, f);
	s.delivered_bytes = f->delivered;
	if (newest) {
		s.prior_delivered_bytes = newest->delivered;
		s.app_limited = newest->app_limited;
		s.tx_inflight_bytes = newest->inflight;
		send_ns = newest->sent_ns - newest->first_tx_ns;
		ack_ns = f->delivered_ns - newest->delivered_ns;
		s.interval_ns = max64(send_ns, ack_ns);
		if (s.interval_ns < f->cc.min_rtt_ns)
			s.interval_ns = 0;
		s.interval_delivered_bytes = f->delivered - newest->delivered;
		s.interval_lost_bytes = f->lost - newest->lost;
		f->first_tx_ns = newest->sent_ns;
	}
	if (sim->now_ns >= sim->path.warm_ns) {
		f->inflight_sum += f->cc.inflight_bytes;
		f->inflight_n++;
	}
	recovery_update(sim, f, s.lost_bytes);
	s.in_order = f->una != una || sim->path.reordering;
	if (s.acked_bytes || s.lost_bytes)
		f->cc.ops->on_ack(&f->cc, &s);
	f->rto_deadline_ns = 0;
	if (f->cc.inflight_bytes)
		rto_arm(sim, f);
	sender_send(sim, f);
}

void sender_reo(struct sim *sim, struct flow *f)
{
	struct cc_sample s = {.now_ns = sim->now_ns, .prior_inflight_bytes = f->cc.inflight_bytes};

	f->reo_timer_ns = 0;
	s.lost_bytes = rack_detect(sim, f);
	if (!s.lost_bytes)
		return;
	s.delivered_bytes = f->delivered;
	recovery_update(sim, f, s.lost_bytes);
	f->cc.ops->on_ack(&f->cc, &s);
	sender_send(sim, f);
}

void sender_rto(struct sim *sim, struct flow *f)
{
	uint32_t i;

	f->rto_timer_ns = 0;
	if (!f->rto_deadline_ns)
		return;
	if (f->rto_deadline_ns > sim->now_ns) {
		f->rto_timer_ns = f->rto_deadline_ns;
		sim_at(f->rto_timer_ns, EV_RTO, f->index, 0);
		return;
	}
	f->rto_deadline_ns = 0;
	for (i = f->tx_head; i < f->tx_n; i++)
		if (f->tx[i].state == TX_FLYING)
			mark_lost(sim, f, &f->tx[i]);
	f->tx_head = f->tx_n;
	f->rtos++;
	f->rto_shift += f->rto_shift < 6;
	f->cc.in_recovery = 1;
	f->recovery_point = f->seg_next;
	f->cc.ops->on_rto(&f->cc, sim->now_ns);
	f->next_send_ns = sim->now_ns;
	sender_send(sim, f);
}
