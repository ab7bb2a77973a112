# SPDX-License-Identifier: Apache-2.0
"""userstack/paths.c against a dictionary, built with the sanitizers and run in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

USERSTACK = Path(__file__).resolve().parents[2] / "dmm_ebpf/userstack"

PROGRAM = r"""
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "paths.h"

static void address(uint8_t addr[16], uint32_t n)
{
	memset(addr, 0, 16);
	addr[10] = addr[11] = 0xff;
	memcpy(addr + 12, &n, 4);
}

static struct path *ready(struct paths *p, uint32_t n, uint64_t now)
{
	uint8_t addr[16];

	address(addr, n);
	struct path *path = path_add(p, addr, now);

	assert(path && path->state == PATH_PENDING);
	path->state = PATH_READY;
	p->n_pending--;
	return path;
}

static void full_table(struct paths *p)
{
	uint8_t addr[16];

	for (uint32_t n = 0; n < PATHS_MAX; n++)
		ready(p, n, n);
	assert(p->used == PATHS_MAX);
	/* One more takes the place of one that was used long ago, and its number no longer finds the old address. */
	address(addr, 0);
	uint32_t hint = path_number(p, path_find(p, addr, PATH_NONE));

	ready(p, PATHS_MAX, PATHS_MAX);
	assert(p->used == PATHS_MAX);
	assert(path_find(p, addr, hint) == NULL);
	address(addr, PATHS_MAX);
	assert(path_find(p, addr, PATH_NONE) == path_find(p, addr, hint));
	for (uint32_t n = 1; n <= PATHS_MAX; n++) {
		address(addr, n);
		struct path *path = path_find(p, addr, n);

		assert(path && !memcmp(path->addr, addr, 16));
		path_remove(p, path);
		assert(!path_find(p, addr, PATH_NONE));
	}
	assert(p->used == 0 && p->n_pending == 0);
}

static void pending_limit(struct paths *p)
{
	uint8_t addr[16];

	for (uint32_t n = 0; n < PATHS_PENDING_MAX; n++) {
		address(addr, n);
		struct path *path = path_add(p, addr, 0);

		for (uint32_t conn = 0; conn < 3; conn++)
			assert(path_wait(p, path, n * 3 + conn) == 0);
	}
	address(addr, PATHS_PENDING_MAX);
	assert(path_add(p, addr, 0) == NULL);
	address(addr, 7);
	struct path *path = path_find(p, addr, PATH_NONE);
	uint32_t sum = 0;

	for (uint32_t conn; (conn = path_unwait(p, path)) != PATH_NONE;)
		sum += conn;
	assert(sum == 21 + 22 + 23);
	for (uint32_t n = 0; n < PATHS_PENDING_MAX; n++) {
		address(addr, n);
		path_remove(p, path_find(p, addr, PATH_NONE));
	}
	assert(p->used == 0 && p->n_pending == 0);
}

static void random_walk(struct paths *p)
{
	static uint8_t present[4096];
	uint8_t addr[16];

	srand(5);
	for (int i = 0; i < 400000; i++) {
		uint32_t n = (uint32_t)rand() % 4096;

		address(addr, n);
		struct path *path = path_find(p, addr, (uint32_t)rand() % PATHS_MAX);

		assert(!!path == present[n]);
		if (path)
			path_remove(p, path);
		else
			ready(p, n, (uint64_t)i);
		present[n] = !present[n];
	}
}

int main(void)
{
	struct paths p;

	assert(paths_init(&p, (const uint64_t[2]){1, 2}) == 0);
	full_table(&p);
	pending_limit(&p);
	random_walk(&p);
	paths_deinit(&p);
	return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("paths")
    source = directory / "walk.c"
    source.write_text(PROGRAM, encoding="utf-8")
    target = directory / "walk"
    flags = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(
        [
            "clang-14",
            *flags,
            "-fno-sanitize-recover",
            f"-I{USERSTACK}",
            "-o",
            target,
            source,
            USERSTACK / "paths.c",
        ],
        check=True,
    )
    return target


def test_table_of_paths(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
