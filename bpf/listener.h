/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * listener.h: listeners[], what the programs at a NIC and the RD know of addresses at which peers
 * may begin.
 *
 * Invariant: an entry's count is the number of sockets that are there, and it is gone when that
 * falls to 0. Counting and deleting must be one step, and BPF of this instruction set has no
 * fetch-and-add; so a writer holds a lock, which is an entry in listener_locks[] made with
 * BPF_NOEXIST. A holder can be preempted, so waiting is bounded, and who gets no lock errs on the
 * safe side: a listener that joins stays unpublished, one that leaves goes on without the lock and
 * may unpublish one that joins just then. Unpublished means that the kernel serves. Readers take no
 * lock.
 */
#ifndef DMM_LISTENER_H
#define DMM_LISTENER_H

#include "decide.h"

#define DMM_LOCK_SPINS 1024

struct dmm_lock {
	const struct dmm_listener_key *key;
	__u64 held;
};

/* The body of step lock_try. */
static __always_inline int lock_try(struct dmm_lock *lock)
{
	__u32 one = 1;

	lock->held = !map_update(DMM_MAP(listener_locks), lock->key, &one, BPF_NOEXIST);
	return lock->held;
}

static __always_inline bool listener_lock(const struct dmm_listener_key *key)
{
	struct dmm_lock lock = {.key = key};

	dmm_loop(DMM_LOCK_SPINS, DMM_STEP(lock_try), &lock, 0);
	return lock.held;
}

static __always_inline void listener_unlock(const struct dmm_listener_key *key)
{
	map_delete(DMM_MAP(listener_locks), key);
}

static __always_inline void listener_key_fill(struct dmm_listener_key *key,
					      const struct dmm_addr_pair *pair)
{
	addr_copy((__u32 *)key->addr, (const __u32 *)pair->laddr);
	key->port_be = pair->lport_be;
	key->proto = pair->proto;
	key->pad = 0;
}

/* For chosen[]. */
static __always_inline __u32 listener_chosen(const struct dmm_decision *decision)
{
	return decision->choice == DMM_CHOICE_TAKEN ? decision->chosen + 1 : 0;
}

static __always_inline void listener_fill(struct dmm_listener *listener,
					  const struct dmm_decision *decision,
					  struct dmm_actor actor, __u64 netns_cookie, __u32 mark,
					  __u32 device, __u32 dscp)
{
	__u32 half = decision->generation & 1;

	listener->tables[half] = decision->table;
	listener->rules[half] = decision->rule;
	listener->wish = listener_chosen(decision);
	listener->chosen[half] = listener->wish;
	listener->uid = decision->uid;
	listener->pid = decision->pid;
	listener->mark = mark;
	listener->device = device;
	listener->dscp = dscp;
	listener->exe_device = actor.device;
	listener->exe_inode = actor.inode;
	listener->gid = actor.gid;
	listener->cgroup_id = decision->cgroup_id;
	listener->netns_cookie = netns_cookie;
	__builtin_memcpy(listener->comm, decision->comm, sizeof(listener->comm));
}

/* The last socket to join decides whose facts are shown and which table serves. */
static __always_inline bool listener_publish(const struct dmm_listener_key *key,
					     const struct dmm_decision *decision,
					     struct dmm_actor actor, __u64 netns_cookie, __u32 mark,
					     __u32 device, __u32 dscp)
{
	struct dmm_listener fresh = {.count = 1};
	struct dmm_listener *listener;
	bool done = true;

	if (!listener_lock(key)) {
		count(DMM_CNT_LISTENERS_FULL);
		return false;
	}
	listener = map_lookup(DMM_MAP(listeners), key);
	if (listener) {
		listener_fill(listener, decision, actor, netns_cookie, mark, device, dscp);
		__sync_fetch_and_add(&listener->count, 1);
	} else {
		/* Spelled out for both halves: a variable index into the program's stack is not
		 * verifiable.
		 */
		__u32 odd = decision->generation & 1;

		fresh.tables[0] = odd ? 0 : decision->table;
		fresh.rules[0] = odd ? 0 : decision->rule;
		fresh.tables[1] = odd ? decision->table : 0;
		fresh.rules[1] = odd ? decision->rule : 0;
		fresh.wish = listener_chosen(decision);
		fresh.chosen[0] = odd ? 0 : fresh.wish;
		fresh.chosen[1] = odd ? fresh.wish : 0;
		fresh.uid = decision->uid;
		fresh.pid = decision->pid;
		fresh.mark = mark;
		fresh.device = device;
		fresh.dscp = dscp;
		fresh.exe_device = actor.device;
		fresh.exe_inode = actor.inode;
		fresh.gid = actor.gid;
		fresh.cgroup_id = decision->cgroup_id;
		fresh.netns_cookie = netns_cookie;
		__builtin_memcpy(fresh.comm, decision->comm, sizeof(fresh.comm));
		if (map_update(DMM_MAP(listeners), key, &fresh, BPF_NOEXIST)) {
			count(DMM_CNT_LISTENERS_FULL);
			done = false;
		}
	}
	listener_unlock(key);
	return done;
}

static __always_inline void listener_withdraw(const struct dmm_listener_key *key)
{
	struct dmm_listener *listener;
	bool locked = listener_lock(key);

	listener = map_lookup(DMM_MAP(listeners), key);
	if (listener) {
		if (listener->count > 1)
			__sync_fetch_and_add(&listener->count, -1);
		else
			map_delete(DMM_MAP(listeners), key);
	}
	if (locked)
		listener_unlock(key);
}

/* Exact address first, then the wildcards; :: serves both families (RFC 3493 section 5.3). */
static __always_inline const struct dmm_listener *listener_find(const struct dmm_addr_pair *pair)
{
	const __u32 *addr = (const __u32 *)pair->laddr;
	const struct dmm_listener *listener;
	struct dmm_listener_key key;

	listener_key_fill(&key, pair);
	listener = map_lookup(DMM_MAP(listeners), &key);
	if (listener)
		return listener;
	if (addr_is_mapped(addr)) {
		addr_set4((__u32 *)key.addr, 0);
		listener = map_lookup(DMM_MAP(listeners), &key);
		if (listener)
			return listener;
	}
	__builtin_memset(key.addr, 0, sizeof(key.addr));
	return map_lookup(DMM_MAP(listeners), &key);
}

/*
 * User space cannot change some fields of an entry without writing, and so losing, its count; this
 * program can. Returns 1: changed, 0: no such listener.
 */
static __always_inline int listener_set(struct dmm_listener_set *ctx)
{
	struct dmm_listener_key key;
	struct dmm_listener *listener;

	__builtin_memcpy(&key, &ctx->key, sizeof(key));
	listener = map_lookup(DMM_MAP(listeners), &key);
	if (!listener)
		return 0;
	listener->tables[ctx->half & 1] = ctx->table;
	listener->rules[ctx->half & 1] = ctx->rule;
	listener->chosen[ctx->half & 1] = ctx->chosen;
	return 1;
}

#endif /* DMM_LISTENER_H */
