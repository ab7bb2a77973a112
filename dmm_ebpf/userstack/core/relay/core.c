/* SPDX-License-Identifier: Apache-2.0 */
/* core.c: the functions of api.h: packets to their connection, time to the wheel, pulls to the
 * ready lists.
 */
#include "core.h"
#include "../cc/cc.h"

#include <stdio.h>
#include <stdlib.h>

enum {
	BURST_PKTS = 16,
	HALF_OPEN_DEFAULT = 1024,
	BUFFER_MAX_BYTES = 1 << 30, /* no window is larger (RFC 7323 section 2.3) */
};

/* No direction's share is more than half of the memory (tcp_window.c). */
static uint32_t buffer_max(uint32_t given, uint64_t memory_bytes)
{
	return (uint32_t)min_u64(given ? given : memory_bytes / 2, BUFFER_MAX_BYTES);
}

/* One message of a thousand waits for a retransmission, if the path can spare a twentieth */
static void redundancy_defaults(struct dmm_core_config *cfg)
{
	if (!cfg->redundancy_budget_ppm)
		cfg->redundancy_budget_ppm = 50000;
	if (!cfg->redundancy_residual_ppm)
		cfg->redundancy_residual_ppm = 1000;
	if (!cfg->parity_most_ppm)
		cfg->parity_most_ppm = 270000;
	else if (cfg->parity_most_ppm == DMM_REDUNDANCY_NONE)
		cfg->parity_most_ppm = 0;
}

static void config_defaults(struct dmm_core_config *cfg)
{
	if (!cfg->memory_bytes)
		cfg->memory_bytes = 256ull << 20;
	if (!cfg->max_connections)
		cfg->max_connections = 100000;
	cfg->max_connections = min_u32(cfg->max_connections, 1u << HANDLE_SLOT_BITS);
	if (!cfg->inner_mtu)
		cfg->inner_mtu = 1500;
	cfg->sndbuf_bytes = buffer_max(cfg->sndbuf_bytes, cfg->memory_bytes);
	cfg->rcvbuf_bytes = buffer_max(cfg->rcvbuf_bytes, cfg->memory_bytes);
	if (!cfg->syn_retries)
		cfg->syn_retries = 6;
	if (!cfg->keepalive_ns)
		cfg->keepalive_ns = 7200 * NS_PER_S;
	if (!cfg->park_ns)
		cfg->park_ns = 10 * NS_PER_S;
	if (!cfg->time_wait_ns)
		cfg->time_wait_ns = 60 * NS_PER_S;
	if (!cfg->half_open_max)
		cfg->half_open_max = min_u32(cfg->max_connections / 4, HALF_OPEN_DEFAULT);
	if (!cfg->half_open_max)
		cfg->half_open_max = 1;
	cfg->congestion[sizeof(cfg->congestion) - 1] = 0;
	cfg->transport[sizeof(cfg->transport) - 1] = 0;
	redundancy_defaults(cfg);
}

/*
 * The path is far, and what it does in a time-out is what Linux does. The kernel is near: a
 * firewall rule that is lifted should show soon, and it sends its FIN again after 200 ms and 400
 * ms. Its orphans die silently after tcp_fin_timeout, so a socket that has closed is soon asked
 * for.
 */
static void profiles(struct end_profile profile[2], const struct dmm_core_config *cfg)
{
	profile[DMM_LEG_OUTER] = (struct end_profile){
		.max_rto_ns = 120 * NS_PER_S,
		.time_wait_ns = cfg->time_wait_ns,
		.keepalive_ns = cfg->keepalive_ns,
		.half_closed_ns = cfg->keepalive_ns,
		.rcv_limit_bytes = cfg->rcvbuf_bytes,
		.syn_retries = cfg->syn_retries,
		.retries = 15, /* as net.ipv4.tcp_retries2 */
		.orphan_retries = 8,
	};
	profile[DMM_LEG_INNER] = (struct end_profile){
		.max_rto_ns = 5 * NS_PER_S,
		.time_wait_ns = NS_PER_S,
		.keepalive_ns = cfg->keepalive_ns,
		.half_closed_ns = 60 * NS_PER_S,
		.rcv_limit_bytes = cfg->sndbuf_bytes,
		.syn_retries = 4,
		.retries = 180,
		.orphan_retries = 180,
	};
}

static void release(struct dmm_core *core)
{
	conn_table_deinit(core);
	fragments_destroy(core->fragments);
	datagrams_deinit(core);
	transports_deinit(core);
}

struct dmm_core *dmm_core_create(const struct dmm_core_config *config)
{
	struct dmm_core *core = calloc(1, sizeof(*core));
	uint64_t seed;

	if (!core)
		return NULL;
	core->env.cfg = *config;
	config_defaults(&core->env.cfg);
	profiles(core->profile, &core->env.cfg);
	core->env.profile = core->profile;
	core->env.up = &relay_events;
	core->env.ctl = core->ctl;
	core->env.cc_ops =
		cc_find(core->env.cfg.congestion[0] ? core->env.cfg.congestion : "cubic");
	core->fragments =
		fragments_create(&core->env.mem, &core->env.counters[DMM_CORE_FRAGMENTS_DROPPED]);
	if (!core->env.cc_ops || core->env.cfg.inner_mtu < 576 || core->env.cfg.inner_mtu > 65535 ||
	    !core->fragments || !transports_init(core) || !conn_table_init(core)) {
		release(core);
		free(core);
		return NULL;
	}
	seed = core->env.cfg.seed;
	for (int i = 0; i < 2; i++) {
		core->secret[i] = splitmix64(&seed);
		core->env.isn_secret[i] = splitmix64(&seed);
	}
	core->env.rng = splitmix64(&seed) | 1;
	datagrams_agree(core);
	for (int i = 0; i < 2; i++)
		core->env.cookie_secret[i] = splitmix64(&seed);
	for (uint32_t i = 0; i < DMM_CORE_DEVICES; i++)
		dmm_core_set_outer_offload(core, i, core->env.cfg.outer_gso_max,
					   core->env.cfg.outer_csum_partial);
	mem_init(&core->env.mem, core->env.cfg.memory_bytes);
	wheel_init(&core->env.wheel, 0);
	wheel_init(&core->park_wheel, 0);
	core->park_next_ns = NEVER;
	list_init(&core->env.ready[0]);
	list_init(&core->env.ready[1]);
	return core;
}

void dmm_core_destroy(struct dmm_core *core)
{
	if (!core)
		return;
	conn_forget_all(core);
	release(core);
	mem_deinit(&core->env.mem);
	free(core);
}

static void pair_of(struct dmm_core_addr_pair *pair, const struct pkt *pkt, uint32_t leg)
{
	bool outer = leg == DMM_LEG_OUTER;

	memset(pair, 0, sizeof(*pair));
	memcpy(pair->laddr, outer ? pkt->daddr : pkt->saddr, 16);
	memcpy(pair->raddr, outer ? pkt->saddr : pkt->daddr, 16);
	pair->lport_be = outer ? pkt->dport_be : pkt->sport_be;
	pair->rport_be = outer ? pkt->sport_be : pkt->dport_be;
	pair->family = pkt->family;
	pair->proto = WIRE_PROTO_TCP;
}

/*
 * RFC 9293 section 3.6.1 and RFC 6191: a SYN, which came in on leg, may take the place of a
 * connection in TIME_WAIT. The app's may also replace one whose outer leg still waits for the
 * peer's last words, if the app's bytes have all arrived.
 */
static bool gives_way(const struct dmm_core *core, const struct conn *c, uint32_t leg,
		      const struct pkt *syn)
{
	const struct end *inner = conn_end(c, DMM_LEG_INNER), *outer = conn_end(c, DMM_LEG_OUTER);
	const struct end_ops *ops = end_ops_of(&core->env, outer);

	if (inner->phase != END_CLOSED && inner->phase != END_LEAVING &&
	    inner->phase != END_WAITING)
		return false;
	if (inner->phase == END_WAITING && outer->phase == END_CLOSED)
		/* all that waits is the answer to a FIN that the kernel may send again */
		return true;
	if (leg == DMM_LEG_INNER && outer->phase == END_OPEN && end_fin_sent(outer) &&
	    !stream_held(&outer->snd))
		return true;
	if (outer->phase != END_WAITING)
		return false;
	if (leg == DMM_LEG_INNER)
		/* the app's kernel has made sure; our sequence numbers go on behind the old ones */
		return true;
	return ops->is_newer && ops->is_newer(&core->env, outer, syn);
}

static void input_end(struct dmm_core *core, struct end *e, const struct pkt *pkt, uint64_t now_ns)
{
	end_ops_of(&core->env, e)->input(&core->env, e, pkt, now_ns);
}

static void input_tcp(struct dmm_core *core, uint32_t leg, const struct pkt *pkt, uint64_t now_ns)
{
	bool syn = (pkt->flags & (TH_SYN | TH_ACK)) == TH_SYN;
	struct dmm_core_addr_pair pair;
	struct conn *c;

	pair_of(&pair, pkt, leg);
	c = conn_find(core, &pair);
	if (c && unlikely(c->ends.f.phase == CONN_PARKED))
		return; /* no memory to wake it: the packet comes again */
	if (!c && !syn)
		relay_unknown(core, leg, &pair, pkt, now_ns);
	else if (syn && (!c || gives_way(core, c, leg, pkt)))
		relay_syn(core, leg, c, &pair, pkt, now_ns);
	else
		input_end(core, conn_end(c, leg), pkt, now_ns);
}

/*
 * Segments that arrived as one packet. What stands alone on the wire is not put
 * together with others.
 */
static void note_segments(struct pkt *pkt, uint32_t leg, const struct dmm_vnet *vnet)
{
	if (!vnet->gso_type || pkt->payload_len <= vnet->gso_size ||
	    (pkt->flags & (TH_SYN | TH_RST | TH_URG)))
		return;
	if (leg == DMM_LEG_OUTER)
		pkt->segment_bytes = vnet->gso_size;
	else
		pkt->cut_bytes = vnet->gso_size;
}

static void note_link(struct pkt *pkt, const struct dmm_rx_meta *meta)
{
	pkt->link = meta->link;
	pkt->link_mtu = (uint16_t)min_u32(meta->mtu, 65535);
}

static void input(struct dmm_core *core, uint32_t leg, const uint8_t *pkt, uint32_t len,
		  const struct dmm_rx_meta *meta, uint64_t now_ns)
{
	enum wire_result what;
	struct pkt parsed;

	what = wire_parse(pkt, len,
			  !meta ||
				  !(meta->vnet.flags & (DMM_VNET_NEEDS_CSUM | DMM_VNET_DATA_VALID)),
			  &parsed);
	if (meta)
		note_link(&parsed, meta);
	switch (what) {
	case WIRE_TCP:
		if (meta)
			note_segments(&parsed, leg & 1, &meta->vnet);
		input_tcp(core, leg & 1, &parsed, now_ns);
		break;
	case WIRE_ICMP:
		relay_icmp(core, leg & 1, &parsed, now_ns);
		break;
	case WIRE_MALFORMED:
		core->env.counters[DMM_CORE_MALFORMED]++;
		break;
	case WIRE_BAD_CSUM:
		core->env.counters[DMM_CORE_BAD_CSUM]++;
		break;
	}
	conn_reap(core);
}

/* A fragment, or a packet with IPv6 extension headers */
static void input_long(struct dmm_core *core, uint32_t leg, const uint8_t *pkt, uint32_t len,
		       const struct dmm_rx_meta *meta, uint64_t now_ns)
{
	struct dmm_rx_meta whole = {0};
	bool joined;

	switch (fragment_take(core->fragments, leg, &pkt, &len, &joined, now_ns)) {
	case FRAGMENT_WHOLE:
		if (meta)
			whole = *meta;
		if (joined)
			memset(&whole.vnet, 0, sizeof(whole.vnet));
		core->env.counters[DMM_CORE_REASSEMBLED] += joined;
		input(core, leg, pkt, len, &whole, now_ns);
		break;
	case FRAGMENT_REFUSED:
		core->env.counters[DMM_CORE_MALFORMED]++;
		break;
	case FRAGMENT_KEPT:
	case FRAGMENT_DROPPED:
		break;
	}
}

void dmm_core_input(struct dmm_core *core, uint32_t leg, const uint8_t *pkt, uint32_t len,
		    const struct dmm_rx_meta *meta, uint64_t now_ns)
{
	core->env.counters[DMM_CORE_IN_PACKETS]++;
	core->env.mem.lent = meta && meta->lent ? pkt : NULL;
	core->env.mem.lent_end = core->env.mem.lent ? pkt + len : NULL;
	if (len >= WIRE_IP4_LEN && unlikely(chain_is_long(pkt, len)))
		input_long(core, leg & 1, pkt, len, meta, now_ns);
	else
		input(core, leg, pkt, len, meta, now_ns);
}

/* What a packet counts for in a burst. To the kernel a long one is one, on the outer leg it is as
 * many as the wire sees. */
static uint8_t burst_of(uint32_t leg, uint32_t n, const struct dmm_tx_meta *meta)
{
	return leg == DMM_LEG_OUTER && meta->vnet.gso_size
		       ? (uint8_t)min_u32(n / meta->vnet.gso_size, BURST_PKTS)
		       : 1;
}

static uint32_t output_ready(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap,
			     struct dmm_tx_meta *meta, uint64_t now_ns)
{
	while (!list_empty(&core->env.ready[leg])) {
		struct end *t = container_of(core->env.ready[leg].next, struct end, ready);
		uint32_t n =
			end_ops_of(&core->env, t)->output(&core->env, t, buf, cap, meta, now_ns);

		if (!n) {
			t->burst = 0;
			list_del(&t->ready);
			continue;
		}
		/* a few packets in a row keep the caches warm, then the next one's turn */
		if (!list_empty(&t->ready) && (t->burst += burst_of(leg, n, meta)) >= BURST_PKTS) {
			t->burst = 0;
			list_del(&t->ready);
			list_add_tail(&core->env.ready[leg], &t->ready);
		}
		return n;
	}
	return 0;
}

uint32_t dmm_core_output(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap,
			 struct dmm_tx_meta *meta, uint64_t now_ns)
{
	uint32_t n;

	leg &= 1;
	n = ctl_pull(&core->env, leg, buf, cap, meta);
	if (!n)
		n = output_ready(core, leg, buf, cap, meta, now_ns);
	if (n)
		core->env.counters[DMM_CORE_OUT_PACKETS]++;
	conn_reap(core);
	return n;
}

uint32_t dmm_core_output_parts(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap,
			       struct dmm_tx_meta *meta, struct dmm_payload *payload,
			       uint64_t now_ns)
{
	uint32_t n;

	payload->n = payload->bytes = 0;
	core->env.parts = payload;
	n = dmm_core_output(core, leg, buf, cap, meta, now_ns);
	core->env.parts = NULL;
	return n;
}

_Static_assert((int)DMM_CORE_BUFFER_BYTES == MEM_BLOCK_BYTES, "a buffer is a block");

uint8_t *dmm_core_buffer(struct dmm_core *core)
{
	uint8_t *block = mem_block_get(&core->env.mem);

	return block ? mem_block_next(&core->env.mem, block) : NULL;
}

uint8_t *dmm_core_buffer_next(struct dmm_core *core, uint8_t *buffer)
{
	return mem_block_next(&core->env.mem, buffer);
}

void dmm_core_output_taken(struct dmm_core *core)
{
	mem_unpin(&core->env.mem);
}

uint64_t dmm_core_poll(struct dmm_core *core, uint64_t now_ns)
{
	uint64_t trim_ns = mem_trim(&core->env.mem, now_ns);
	uint64_t fragments_ns = fragments_expire(core->fragments, now_ns);
	struct wheel_node *n;

	if (unlikely(core->park_next_ns <= now_ns))
		park_poll(core, now_ns);
	wheel_advance(&core->env.wheel, now_ns);
	while ((n = wheel_pop(&core->env.wheel))) {
		struct end *e = container_of(n, struct end, timer);

		end_ops_of(&core->env, e)->timer(&core->env, e, now_ns);
	}
	conn_reap(core);
	for (int leg = 0; leg < 2; leg++) {
		if (!list_empty(&core->env.ready[leg]) || core->ctl[leg].count)
			return now_ns;
	}
	return min_u64(min_u64(wheel_next_ns(&core->env.wheel), datagrams_due_ns(core)),
		       min_u64(core->park_next_ns, min_u64(trim_ns, fragments_ns)));
}

uint32_t dmm_core_action(struct dmm_core *core, struct dmm_action *action)
{
	struct action_queue *q = &core->actions;

	if (!q->count)
		return 0;
	*action = q->v[q->head];
	q->head = (q->head + 1) & (q->cap - 1);
	q->count--;
	return 1;
}

uint32_t dmm_core_set_congestion(struct dmm_core *core, const char *name)
{
	const struct cc_ops *ops = cc_find(name);

	if (ops)
		core->env.cc_ops = ops;
	return !!ops;
}

void dmm_core_set_congestion_ops(struct dmm_core *core, const struct cc_ops *ops)
{
	core->env.cc_ops = ops;
}

void dmm_core_set_outer_offload(struct dmm_core *core, uint32_t device, uint32_t gso_max,
				uint32_t csum_partial)
{
	if (device < DMM_CORE_DEVICES)
		core->env.offload[device] =
			(struct offload){.gso_max = gso_max, .csum_partial = csum_partial};
}

void dmm_core_set_syn_cookies(struct dmm_core *core, uint32_t mode)
{
	if (mode <= DMM_SYN_COOKIES_OFF)
		core->env.cfg.syn_cookies = mode;
}

void dmm_core_set_negotiate(struct dmm_core *core, uint32_t mode)
{
	if (mode > DMM_NEGOTIATE_DEMAND)
		return;
	core->env.cfg.negotiate = mode;
	datagrams_agree(core);
}

void dmm_core_set_latency(struct dmm_core *core, uint32_t latency, uint32_t redundancy_budget_ppm,
			  uint32_t redundancy_residual_ppm, uint32_t parity_most_ppm)
{
	struct dmm_core_config *cfg = &core->env.cfg;

	if (latency > DMM_LATENCY_NORMAL)
		return;
	cfg->latency = latency;
	cfg->redundancy_budget_ppm = redundancy_budget_ppm;
	cfg->redundancy_residual_ppm = redundancy_residual_ppm;
	cfg->parity_most_ppm = parity_most_ppm;
	redundancy_defaults(cfg);
}

uint64_t dmm_core_cookies_until_ns(const struct dmm_core *core)
{
	return core->env.cookies_until_ns;
}

void dmm_core_unreachable(struct dmm_core *core, uint32_t conn, uint32_t error, uint64_t now_ns)
{
	struct conn *c = conn_by_handle(core, conn);

	(void)now_ns;
	if (c)
		relay_unreachable(core, c, error);
	conn_reap(core);
}

void dmm_core_abort_all(struct dmm_core *core, uint64_t now_ns)
{
	for (uint32_t i = 0; i < core->n_live; i++) {
		struct conn *c = core->slots[core->live[i]];

		if (c->ends.f.phase == CONN_PARKED)
			c = conn_wake(core, c);
		if (c) /* else there is no memory: its peers find out by themselves */
			relay_abort(core, c, ECONNABORTED, now_ns);
	}
	conn_reap(core);
}

uint32_t dmm_core_conn_info(const struct dmm_core *core, uint32_t index, struct dmm_conn_info *info)
{
	const struct conn *c;

	if (index >= core->n_live)
		return 0;
	c = conn_look(core, core->slots[core->live[index]]);
	memset(info, 0, sizeof(*info));
	info->conn = c->ends.f.handle;
	info->passive = c->ends.f.passive;
	info->pair = c->ends.f.pair;
	for (uint32_t leg = 0; leg < 2; leg++) {
		const struct end *e = conn_end(c, leg);

		end_ops_of(&core->env, e)->info(&core->env, e, info);
	}
	snprintf(info->transport, sizeof(info->transport), "%s",
		 end_ops_of(&core->env, conn_end(c, DMM_LEG_OUTER))->name);
	return 1;
}

void dmm_core_memory(const struct dmm_core *core, struct dmm_core_memory *memory)
{
	uint64_t per_slot = sizeof(*core->slots) + sizeof(*core->free_slots) +
			    sizeof(*core->slot_gen) + sizeof(*core->live);

	*memory = (struct dmm_core_memory){
		.used_bytes = core->env.mem.used_bytes,
		.held_bytes = mem_held_bytes(&core->env.mem),
		.payload_bytes = core->env.mem.chunk_bytes,
		.payload_limit_bytes = core->env.mem.limit_bytes,
		.table_bytes = core->env.cfg.max_connections * per_slot +
			       (core->bucket_mask + 1ull) * sizeof(*core->buckets),
		.connections = core->n_live,
		.parked = core->n_parked,
	};
}

uint32_t dmm_core_connections(const struct dmm_core *core)
{
	return core->n_live;
}

uint32_t dmm_core_in_use(const struct dmm_core *core)
{
	return core->n_live - core->n_time_wait - core->n_half_open;
}

uint64_t dmm_core_counter(const struct dmm_core *core, uint32_t counter)
{
	return counter < DMM_CORE_MAX ? core->env.counters[counter] : 0;
}
