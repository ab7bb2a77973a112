# SPDX-License-Identifier: Apache-2.0
"""userstack/load.c: when a process of a stack is full, and until when. Built with the sanitizers,
in a process of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

USERSTACK = Path(__file__).resolve().parents[2] / "dmm_ebpf/userstack"

PROGRAM = r"""
#include <assert.h>
#include "load.h"

#define S 1000000000ull
#define MIB (1ull << 20)

static const struct load_signs idle = {.memory_limit_bytes = 64 * MIB};

static uint32_t with_in_use(struct load *l, uint32_t in_use)
{
	struct load_signs signs = idle;

	signs.in_use = in_use;
	return load_update(l, &signs, S);
}

static void connections(uint32_t max, uint32_t stays, uint32_t goes)
{
	struct load l = {.max_connections = max};

	assert(with_in_use(&l, max - 1) == 0);
	assert(with_in_use(&l, max) == DMM_FULL_CONNECTIONS && l.full == DMM_FULL_CONNECTIONS);
	assert(with_in_use(&l, max + 1) == DMM_FULL_CONNECTIONS);
	assert(with_in_use(&l, stays) == DMM_FULL_CONNECTIONS);
	assert(with_in_use(&l, goes) == 0);
	assert(max == goes + 1 || with_in_use(&l, stays) == 0);
}

static uint32_t with_memory(struct load *l, uint64_t bytes)
{
	struct load_signs signs = idle;

	signs.memory_bytes = bytes;
	return load_update(l, &signs, S);
}

static void memory(void)
{
	struct load l = {.max_connections = 4};

	assert(with_memory(&l, 48 * MIB - 1) == 0);
	assert(with_memory(&l, 48 * MIB) == DMM_FULL_MEMORY);
	assert(with_memory(&l, 44 * MIB) == DMM_FULL_MEMORY);
	assert(with_memory(&l, 44 * MIB - 1) == 0);
	assert(with_memory(&l, 48 * MIB - 1) == 0);
	assert(load_again_ns(&l) == UINT64_MAX);
}

static void frames(void)
{
	struct load l = {.max_connections = 4};
	struct load_signs signs = idle;

	assert(load_update(&l, &signs, 5 * S) == 0);
	signs.blocked = true;
	assert(load_update(&l, &signs, 6 * S - 1) == 0);
	signs.sent_pkts = 1; /* slow, but it goes on */
	assert(load_update(&l, &signs, 6 * S) == 0);
	assert(load_update(&l, &signs, 7 * S - 1) == 0);
	assert(load_update(&l, &signs, 7 * S) == DMM_FULL_FRAMES);
	signs.sent_pkts = 2;
	assert(load_update(&l, &signs, 8 * S) == 0);
	assert(load_update(&l, &signs, 9 * S) == DMM_FULL_FRAMES);
	signs.blocked = false;
	assert(load_update(&l, &signs, 9 * S + 1) == 0);
}

static void refusals(void)
{
	struct load l = {.max_connections = 4};
	struct load_signs signs = idle;

	signs.refused = 1;
	assert(load_update(&l, &signs, 5 * S) == DMM_FULL_REFUSED && load_again_ns(&l) == 6 * S);
	signs.refused = 2;
	assert(load_update(&l, &signs, 6 * S - 1) == DMM_FULL_REFUSED && load_again_ns(&l) == 7 * S - 1);
	signs.in_use = 4;
	assert(load_update(&l, &signs, 7 * S - 2) == (DMM_FULL_REFUSED | DMM_FULL_CONNECTIONS));
	assert(load_update(&l, &signs, 7 * S - 1) == DMM_FULL_CONNECTIONS && load_again_ns(&l) == UINT64_MAX);
}

int main(void)
{
	connections(1, 1, 0);
	connections(4, 4, 3);
	connections(8, 7, 6);
	connections(100000, 87500, 87499);
	memory();
	frames();
	refusals();
	return 0;
}
"""


def test_when_a_process_is_full(tmp_path: Path) -> None:
    source, target = tmp_path / "load.c", tmp_path / "load"
    source.write_text(PROGRAM, encoding="utf-8")
    flags = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    compiler = ["clang-14", *flags, "-fno-sanitize-recover", f"-I{USERSTACK}"]
    subprocess.run([*compiler, "-o", target, source, USERSTACK / "load.c"], check=True)
    done = subprocess.run([target], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
