/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl.c: packets that belong to no connection's send queue: RST to strangers, ICMP errors, single
 * ACKs.
 *
 * A bounded ring per leg; a full ring drops, which also bounds what a flood can make us answer. An
 * answer without a connection goes back the way that the packet came: to look the way up would make
 * a flood's forged addresses work for the whole stack.
 */
#include "ctl.h"

void ctl_dir(const struct dmm_core_addr_pair *pair, uint32_t leg, struct wire_dir *dir)
{
	bool out = leg == DMM_LEG_OUTER;

	memset(dir, 0, sizeof(*dir));
	dir->family = pair->family;
	dir->saddr = out ? pair->laddr : pair->raddr;
	dir->daddr = out ? pair->raddr : pair->laddr;
	dir->sport_be = out ? pair->lport_be : pair->rport_be;
	dir->dport_be = out ? pair->rport_be : pair->lport_be;
}

static uint8_t *ctl_slot(struct env *env, uint32_t leg, uint64_t link, uint8_t family,
			 uint16_t **len)
{
	struct ctl_queue *q = &env->ctl[leg];
	uint32_t i;

	if (q->count == CTL_SLOTS)
		return NULL;
	i = (q->head + q->count++) % CTL_SLOTS;
	q->slot[i].link = link;
	q->slot[i].family = family;
	*len = &q->slot[i].len;
	return q->slot[i].data;
}

void ctl_push_tcp(struct env *env, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		  const struct wire_seg *seg)
{
	uint16_t *len;
	uint8_t *p = ctl_slot(env, leg, link, dir->family, &len);

	if (!p)
		return;
	if (seg->flags & TH_RST)
		env->counters[DMM_CORE_RST_OUT]++;
	*len = (uint16_t)wire_headers(p, dir, seg, 0);
	wire_csum_full(p, dir, *len, 0, 0);
}

void ctl_push_icmp(struct env *env, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		   const struct wire_seg *seg, uint8_t type, uint8_t code)
{
	uint16_t *len;
	uint8_t *p = ctl_slot(env, leg, link, dir->family, &len);

	if (p)
		*len = (uint16_t)wire_icmp_error(p, dir, seg, type, code);
}

void ctl_reset_unknown(struct env *env, uint32_t leg, uint64_t link, const struct pkt *pkt)
{
	struct wire_dir dir = {
		.saddr = pkt->daddr,
		.daddr = pkt->saddr,
		.sport_be = pkt->dport_be,
		.dport_be = pkt->sport_be,
		.family = pkt->family,
	};
	struct wire_seg seg = {.flags = TH_RST};

	if (pkt->flags & TH_RST)
		return;
	if (pkt->flags & TH_ACK) {
		seg.seq = pkt->ack;
	} else {
		seg.flags |= TH_ACK;
		seg.ack = pkt->seq + pkt->payload_len + !!(pkt->flags & TH_SYN) +
			  !!(pkt->flags & TH_FIN);
	}
	ctl_push_tcp(env, leg, link, &dir, &seg);
}

uint32_t ctl_pull(struct env *env, uint32_t leg, uint8_t *buf, uint32_t cap,
		  struct dmm_tx_meta *meta)
{
	struct ctl_queue *q = &env->ctl[leg];
	uint32_t i = q->head, len;

	if (!q->count)
		return 0;
	q->head = (q->head + 1) % CTL_SLOTS;
	q->count--;
	len = q->slot[i].len;
	if (len > cap)
		return 0;
	memcpy(buf, q->slot[i].data, len);
	memset(meta, 0, sizeof(*meta));
	meta->link = q->slot[i].link;
	meta->family = q->slot[i].family;
	return len;
}
