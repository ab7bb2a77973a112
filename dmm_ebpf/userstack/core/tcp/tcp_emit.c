/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_emit.c: a packet of a leg, made once it is known what it is to say: the header's fields and
 * options, the IP header, checksums, payload.
 *
 * On the inner leg a segment may be as long as a GSO packet; its checksum is left to the kernel. On
 * the outer leg a packet may hold several segments of new data, if the device cuts it (tcp_run.c).
 */
#include "tcp_int.h"
#include "tcp_parity.h"

enum { PARTS_FROM_BYTES = 1024 }; /* a shorter payload is copied in less time than told of */

static uint32_t wire_seq(const struct tcb *t, uint64_t seq)
{
	return t->iss + (uint32_t)seq;
}

static void ack_sent(struct tcb *t)
{
	t->flags &= ~(uint32_t)(TF_ACK_NOW | TF_OOO_ACK);
	t->delack_ns = NEVER;
	t->unacked_segs = 0;
}

void emit_fill(struct env *env, struct tcb *t, struct wire_seg *seg, uint16_t flags, uint64_t seq,
	       uint32_t len, uint64_t now_ns)
{
	uint64_t ack = hold_ack(t);

	seg->flags = flags;
	seg->seq = wire_seq(t, seq);
	seg->ack = flags & TH_ACK ? t->irs + (uint32_t)ack : 0;
	seg->opt_len = 0;
	seg->wnd = seg->urg = 0;
	if (flags & TH_RST)
		return;
	seg->wnd = window_take(env, t, ack, flags & TH_SYN);
	if (flags & TH_SYN)
		return;
	seg->flags |= ecn_ack_flags(t);
	if (unlikely(t->snd_up > seq))
		urg_mark(t, seg, seq);
	if (t->flags & TF_TS)
		wire_opt_ts(seg, tcp_ts_now(t, now_ns), t->ts_recent);
	if (!tcb_is_outer(t))
		hold_told(t, ack);
	if (!len && tcb_is_outer(t))
		parity_tell(t, seg);
	if (opt_feedback(env, t, seg, len, now_ns))
		ack_sent(t);
	agree_confirm(t, seg);
	t->last_ack_sent = ack;
}

/* The checksum is left to the device */
static void vnet_partial(struct dmm_vnet *v, uint8_t family)
{
	v->flags = DMM_VNET_NEEDS_CSUM;
	v->csum_start = (uint16_t)wire_ip_len(family);
	v->csum_offset = WIRE_CSUM_OFFSET;
}

/* Likewise the cutting into segments */
static void vnet_gso(struct dmm_vnet *v, uint8_t family, uint32_t headers_len,
		     uint32_t segment_bytes)
{
	v->gso_type = family == WIRE_AF_INET ? DMM_VNET_GSO_TCPV4 : DMM_VNET_GSO_TCPV6;
	v->hdr_len = (uint16_t)headers_len;
	v->gso_size = (uint16_t)segment_bytes;
}

/* Each end sees in the IP header what the other has asked for */
static void dir_of(const struct tcb *t, struct wire_dir *dir)
{
	const struct ends *e = tcb_ends(t);
	bool outer = tcb_is_outer(t);

	ctl_dir(&e->f.pair, t->leg, dir);
	dir->tos = outer ? e->tos : e->peer_tos;
	dir->ttl = outer ? e->ttl : e->peer_ttl;
	dir->may_cut = outer && e->may_cut;
	dir->flow_label = outer ? e->flow_label : e->peer_label;
}

uint32_t emit_packet(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		     const struct wire_seg *seg, uint32_t more, uint8_t ecn, uint64_t off,
		     uint32_t len)
{
	struct ends *e = tcb_ends(t);
	struct wire_dir dir;
	uint32_t headers;

	dir_of(t, &dir);
	dir.tos |= ecn;
	dir.id = env->ip_id++;
	if (tcb_is_outer(t))
		env->ip_id = (uint16_t)(env->ip_id + more);
	headers = wire_headers(buf, &dir, seg, len);
	memset(meta, 0, sizeof(*meta));
	meta->link = e->link;
	meta->family = e->f.pair.family;
	if (tcb_is_outer(t)) {
		tcb_outer(t)->segments_sent += 1 + more;
		if (!env_offload(env, e->link)->csum_partial) {
			wire_csum_full(buf, &dir, headers, len,
				       stream_copy_csum(&t->snd, off, buf + headers, len));
			return headers + len;
		}
	}
	vnet_partial(&meta->vnet, e->f.pair.family);
	if (tcb_is_outer(t) ? more : len > t->mss)
		vnet_gso(&meta->vnet, e->f.pair.family, headers, t->mss);
	if (more && (seg->flags & TH_CWR))
		meta->vnet.gso_type |= DMM_VNET_GSO_ECN;
	wire_csum_partial(buf, &dir, headers, len);
	if (env->parts && len >= PARTS_FROM_BYTES) {
		stream_parts(&t->snd, off, len, env->parts);
		mem_pin(&env->mem);
	} else {
		stream_copy(&t->snd, off, buf + headers, len);
	}
	return headers + len;
}

/*
 * The sequence number of what carries none of the stream. One beyond the peer's window is dropped
 * with all that it says (RFC 9293 section 3.10.7.4), and a peer may take its window back under what
 * was lost on the way: Linux tells zero when it has no memory, and would never hear that we have
 * what it sends. Where SND.NXT is beyond by no more than a window's rounding it stays, else the
 * segment might seem old (Linux: tcp_acceptable_seq()).
 */
uint64_t emit_bare_seq(const struct tcb *t)
{
	uint64_t edge = t->snd_una + t->snd_wnd,
		 rounding = t->snd_wnd ? (1u << t->snd_wscale) - 1 : 0;

	return t->snd_una && t->snd_nxt > edge + rounding ? edge : t->snd_nxt;
}

uint32_t emit_ack(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		  uint64_t seq, uint64_t now_ns)
{
	struct wire_seg seg;

	emit_fill(env, t, &seg, TH_ACK, seq, 0, now_ns);
	return emit_packet(env, t, buf, meta, &seg, 0, 0, 0, 0);
}

void tcp_ack_apart(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct ends *e = tcb_ends(t);
	struct wire_seg seg;
	struct wire_dir dir;

	if (t->flags & TF_HOLD)
		return;
	emit_fill(env, t, &seg, TH_ACK, emit_bare_seq(t), 0, now_ns);
	dir_of(t, &dir);
	ctl_push_tcp(env, t->leg, e->link, &dir, &seg);
}

/*
 * The segment's header. A copy neither asks for ECN nor tells of it: marks are counted by segment.
 */
void emit_head(struct env *env, struct tcb *t, const struct seg *s, bool copy, struct wire_seg *seg,
	       uint8_t *ecn, uint64_t now_ns)
{
	uint32_t payload = s->len - !!(s->flags & SEG_FIN);
	uint16_t flags = TH_ACK | (s->flags & SEG_FIN ? TH_FIN : 0);

	*ecn = 0;
	if (!copy)
		flags |= ecn_data_flags(t, s, ecn);
	if (s->seq + payload == t->snd.tail + 1)
		flags |= TH_PSH;
	emit_fill(env, t, seg, flags, s->seq, payload, now_ns);
	if (!copy && !(s->flags & SEG_RETRANS))
		opt_accecn(env, t, seg, payload, 0, now_ns);
}

uint32_t emit_segment(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		      const struct seg *s, bool copy, uint64_t now_ns)
{
	struct wire_seg seg;
	uint8_t ecn;

	emit_head(env, t, s, copy, &seg, &ecn, now_ns);
	return emit_packet(env, t, buf, meta, &seg, 0, ecn, s->seq - 1,
			   s->len - !!(s->flags & SEG_FIN));
}

uint32_t tcp_out_apart(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		       uint64_t seq, const uint8_t *payload, uint32_t len, uint64_t now_ns)
{
	struct ends *e = tcb_ends(t);
	uint64_t ack = hold_ack(t);
	struct wire_seg seg = {.flags = TH_ACK,
			       .seq = wire_seq(t, seq),
			       .ack = t->irs + (uint32_t)ack,
			       .wnd = window_take(env, t, ack, false)};
	struct wire_dir dir;
	uint32_t headers;

	seg.flags |= ecn_ack_flags(t);
	if (t->flags & TF_TS)
		wire_opt_ts(&seg, tcp_ts_now(t, now_ns), t->ts_recent);
	wire_opt_parity(&seg, true, tcb_outer(t)->repaired & PARITY_COUNT_MASK);
	if (t->flags & TF_ACCECN)
		accecn_ace(t, &seg, false);
	t->last_ack_sent = ack;
	dir_of(t, &dir);
	dir.id = env->ip_id++;
	headers = wire_headers(buf, &dir, &seg, len);
	memcpy(buf + headers, payload, len);
	memset(meta, 0, sizeof(*meta));
	meta->link = e->link;
	meta->family = e->f.pair.family;
	tcb_outer(t)->segments_sent++;
	wire_csum_full(buf, &dir, headers, len, csum_add(payload, len, 0));
	return headers + len;
}
