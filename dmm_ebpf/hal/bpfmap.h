/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpfmap.h: bpf(2) for maps, for C that must not wait for Python: a process's own sockets, devices
 * and flows.
 */
#ifndef DMM_BPFMAP_H
#define DMM_BPFMAP_H

#include <linux/bpf.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* command: BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM (BPF_ANY) or BPF_MAP_DELETE_ELEM, which has no
 * value (NULL). Returns 0, or -1 with errno set. */
static inline int dmm_bpf_map(int command, int map_fd, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map_fd;
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	attr.flags = BPF_ANY;
	return (int)syscall(SYS_bpf, command, &attr, sizeof(attr));
}

#endif /* DMM_BPFMAP_H */
