/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * group.h: cgroups that come and go: their ids are known before anybody is in them, and the hooks
 * of an instance whose own does are on one above it that stays.
 *
 * A service manager removes a service's cgroup and makes it again, with another id. A raw
 * tracepoint tells of that within mkdir(2): before the new one is shown to anybody, its id is where
 * the hooks look. Nobody has to be awake for it, nor a Resource Director alive.
 *
 * Programs of a cgroup go with it, and its children have those that it had as they were made. So
 * those of a cgroup that comes and goes are put on one above it, and ask for each socket whether it
 * is of the instance's: by the process that acts, as rules do, and where none acts by the cgroup
 * that the socket was made in, as the kernel does. A socket of others there gets no record, no
 * storage and no count; what is asked of these alone (release.h, state changes) needs no gate.
 */
#ifndef DMM_GROUP_H
#define DMM_GROUP_H

#include "decide.h"

static __always_inline __u64 *own_group_at(const __u32 *zero)
{
	return map_lookup(DMM_MAP(own_group), zero);
}

static __always_inline __u64 *own_group(void)
{
	__u32 zero = 0;

	return own_group_at(&zero);
}

static __always_inline bool is_gated(const struct dmm_control *control)
{
	return unlikely(control->flags & DMM_CONTROL_GATE);
}

/*
 * Whether the process that acts is in the instance's cgroup, or below it. zero: some word that is
 * 0, on the stack of a program that has no room for one more.
 */
static __always_inline bool current_is_own_by(const struct dmm_control *control, const __u32 *zero)
{
	const __u64 *own = own_group_at(zero);
	__u64 id;

	if (!own)
		return false;
	/* Its own cgroup is its own ancestor; 0: it is not that deep. */
	id = bpf_get_current_ancestor_cgroup_id(control->cgroup_level);
	return id && id == *own;
}

static __always_inline bool current_is_own(const struct dmm_control *control)
{
	__u32 zero = 0;

	return current_is_own_by(control, &zero);
}

static __always_inline bool current_is_meant(const struct dmm_control *control)
{
	return !is_gated(control) || current_is_own(control);
}

#if defined(DMM_SK_CGROUP) && defined(DMM_TASK_COMM)
#define GROUP_DEEPEST 0xffff

/* The same of the cgroup that a TCP socket was made in. */
static __always_inline bool socket_is_meant(struct bpf_sock *sk, const struct dmm_control *control)
{
	__u32 level = control->cgroup_level & GROUP_DEEPEST;
	const void *tcp, *group;
	const __u64 *own;
	__u64 at;

	if (!is_gated(control))
		return true;
	own = own_group();
	tcp = dmm_tcp_of(sk);
	if (!own || !tcp)
		return false;
	group = KERNEL_LOAD(void *, tcp, DMM_SK_CGROUP);
	if (KERNEL_LOAD(__u32, group, DMM_CGROUP_LEVEL) < level)
		return false;
	at = probed((const char *)group + DMM_CGROUP_ANCESTORS + level * sizeof(void *));
	at = probed((const void *)(at + DMM_CGROUP_KN));
	return probed((const void *)(at + DMM_KN_ID)) == *own;
}
#else
/* No instance has its hooks elsewhere (gates() in dmm_ebpf/loader/groupmade.py). */
static __always_inline bool socket_is_meant(struct bpf_sock *sk, const struct dmm_control *control)
{
	(void)sk;
	(void)control;
	return true;
}
#endif

/* The arguments of the tracepoint cgroup_mkdir: struct cgroup *, const char *. */
struct dmm_group_made {
	__u64 group;
	__u64 path;
};

/* A way through the rules of both halves. */
struct dmm_group_search {
	const struct dmm_waited *waited;
	__u64 id;
	__u32 next;
	__u32 pad;
};

/*
 * The body of step group_rule. Bits for what is beyond a half's rules are never set.
 */
static __always_inline int group_rule(struct dmm_group_search *search)
{
	__u32 next = search->next++;
	__u32 key = (next >> 8 & 1) * DMM_MAX_CHECKS + (next & 255);
	struct dmm_rule *rule;

	if (!(search->waited->rules[next >> 6 & 7] >> (next & 63) & 1))
		return 0;
	rule = map_lookup(DMM_MAP(rules), &key);
	if (rule)
		rule->cgroup_id = search->id;
	return 0;
}

#if defined(DMM_CGROUP_ROOT) && defined(DMM_TASK_COMM)
/* Of the default hierarchy alone: those of cgroup v1 have the same paths. */
static __always_inline bool is_unified(const char *group)
{
	const char *root = (const char *)probed(group + DMM_CGROUP_ROOT);

	return !(__u32)probed(root + DMM_ROOT_HIERARCHY);
}

static __always_inline int group_made(struct dmm_group_made *ctx)
{
	const char *group = (const char *)CTX_LOAD(u64, ctx, group);
	const void *path = (const void *)CTX_LOAD(u64, ctx, path);
	struct dmm_group_search search = {};
	struct dmm_waited_key key = {};
	__u64 *own;

	if (bpf_probe_read_kernel_str(key.path, sizeof(key.path), path) < 0 || !is_unified(group))
		return 0;
	search.waited = map_lookup(DMM_MAP(waited), &key);
	if (likely(!search.waited))
		return 0;
	search.id = probed((const char *)probed(group + DMM_CGROUP_KN) + DMM_KN_ID);
	own = own_group();
	if (search.waited->own && own)
		*own = search.id;
	/* 0, which the verifier does not know: so one turn stands for all, as it sees it. */
	search.next = search.waited->own >> 1;
	dmm_loop(2 * 256, DMM_STEP(group_rule), &search, 0);
	return 0;
}
#else
static __always_inline int group_made(struct dmm_group_made *ctx)
{
	(void)ctx;
	return 0;
}
#endif

static __always_inline void id_replace(__u64 *id, const struct dmm_rule_set *set)
{
	__sync_val_compare_and_swap(id, set->cgroup_was, set->cgroup_id);
}

/* For the RD: a rule in force is changed in place, and an id only if nobody has since. */
static __always_inline int rule_set(struct dmm_rule_set *ctx)
{
	__u32 key = ctx->rule;
	struct dmm_rule *rule;
	__u64 *own;

	if (key == DMM_OWN_GROUP) {
		own = own_group();
		if (own)
			id_replace(own, ctx);
		return 1;
	}
	rule = map_lookup(DMM_MAP(rules), &key);
	if (!rule)
		return 0;
	rule->device = ctx->device;
	rule->exe_device = ctx->exe_device;
	rule->exe_inode = ctx->exe_inode;
	id_replace(&rule->cgroup_id, ctx);
	return 1;
}

#endif /* DMM_GROUP_H */
