# SPDX-License-Identifier: Apache-2.0
"""Whole simulated connections as Hypothesis makes them up: paths, peers, hosts and apps of every
kind, and the verdict.

A case is the words of lab/sim/params.def that differ from the defaults, so that what is left after
shrinking is what matters. Two classes: `honest_cases()`, hard paths and small hosts, where nothing
excuses an error (excuse()), so that every stream must arrive; and `wild_cases()`, where anything
may happen and an error is an answer. Used by the tests (a few, always the same) and by `tools/soak
simulated` (as many as one likes).
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dmm_ebpf.kit.names import CONTROLS
from lab.sim.corelab import MS, S

Case = dict[str, "int | float | str"]
Result = dict[str, int]

LIMIT_NS = 6 * 3600 * S
LONGEST_RUN_S = 120  # of real time; the longest seen is some seconds
TIME_WAIT_NS = 60 * S
ALWAYS = {"check": 1, "limit_ns": LIMIT_NS, "keepalive_ns": 60 * S, "timewait_ns": TIME_WAIT_NS}
# With windows of some bytes a round trip carries no more than that, and 6 hours must be enough
TINY_WINDOW_BYTES = 100
TINY_VOLUME_BYTES = 3000
# Of parity_box: what makes parity wrong, and so may end the connection
LYING_BOXES = (2, 5, 6)
DROPS_SYNS, DEMAND = 1, 2  # of agree_box and negotiate, lab/sim/params.def
# As lab/sim/wild.h has them
WILD = ("renege", "lie", "shut", "shrink", "acks", "data", "flags", "ts")


class ViolationError(Exception):
    """A run broke the invariant; the text is one sentence."""


def _percent(most: int) -> st.SearchStrategy[float]:
    return st.integers(0, most).map(lambda value: value / 100)


def _ms(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most).map(lambda value: value * MS)


# Beyond these a handshake of seven tries may fail by chance: more than one in a million times
MOST_LOSS, MOST_CORRUPT, MOST_INNER_LOSS = 0.10, 0.02, 0.03
LONGEST_CUT_S = 10  # a closed app's connection is given up after 8 retransmissions, some 50 s


def _some(**words: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    """Any of the words, or often none at all."""
    return st.just({}) | st.fixed_dictionaries({}, optional=dict(words))


def _only(
    group: dict[str, st.SearchStrategy[Any]], *names: str
) -> dict[str, st.SearchStrategy[Any]]:
    return {name: group[name] for name in names}


LINK: dict[str, st.SearchStrategy[Any]] = {
    "loss": _percent(15),
    "loss_back": _percent(15),
    "dup": _percent(20),
    "reorder": _percent(50),
    "reorder_ns": _ms(100),
    "corrupt": _percent(5),
    "delay_ns": _ms(200),
    "rate_Bps": st.sampled_from([20_000, 100_000, 1_000_000, 1_000_000_000]),
    "queue_bytes": st.integers(3000, 1_000_000),
    "mark_bytes": st.sampled_from([1, 10_000]),
    "mtu": st.integers(576, 9000),
    "v6": st.just(1),
}
HONEST_LINK = LINK | {
    "loss": _percent(round(MOST_LOSS * 100)),
    "loss_back": _percent(round(MOST_LOSS * 100)),
    "corrupt": _percent(round(MOST_CORRUPT * 100)),
    "rate_Bps": st.sampled_from([100_000, 1_000_000, 1_000_000_000]),
    "queue_bytes": st.integers(10_000, 200_000),
}
MIDDLEBOXES: dict[str, st.SearchStrategy[Any]] = {
    "strip": st.integers(1, 7),
    "agree_box": st.integers(1, 6),
    "parity_box": st.integers(1, 6),
    "mss": st.sampled_from([1, 64, 88, 536, 1400]),
    "ecn_drop": st.just(1),
    "icmp_mtu": st.integers(600, 1499),
    "hole_bytes": st.integers(600, 1499),
    "synloss": st.integers(1, 4),
}
_START = _ms(400).map(lambda value: value + S)
_STALL = st.fixed_dictionaries(
    {"stall_from_ns": _START, "stall_to_ns": st.sampled_from([2 * S, 10 * S])}
)
TROUBLE = st.one_of(
    *[st.just({})] * 8,
    st.fixed_dictionaries(
        {"cut_from_ns": _START, "cut_to_ns": st.sampled_from([2 * S, 10 * S, 100 * S, 2**62])}
    ),
    _STALL,
    st.fixed_dictionaries({"abort_all_ns": _ms(300)}),
    st.sampled_from([{"refuse": 1}, {"mute": 1}, {"unreach": 101}, {"unreach": 113}]),
)
# A path that is down is nothing else besides, or the tries that are left may get lost
_CALM = {"loss": 0, "loss_back": 0, "corrupt": 0}
HONEST_TROUBLE = st.one_of(
    *[st.just({})] * 8,
    st.fixed_dictionaries(
        {"cut_from_ns": _START, "cut_to_ns": st.sampled_from([2 * S, LONGEST_CUT_S * S])}
    ).map(_CALM.__or__),
    st.integers(1, 4).map(lambda n: _CALM | {"synloss": n}),
    _STALL,
)
INNER: dict[str, st.SearchStrategy[Any]] = {
    "inner_loss": _percent(15),
    "inner_dup": _percent(20),
    "inner_reorder": _percent(50),
    "inner_reorder_ns": _ms(20),
    "inner_drop_from_ns": _START,
    "inner_drop_to_ns": st.sampled_from([2 * S, 10 * S]),
    "gso": st.sampled_from([0, 4000]),
}
_INNER_GENTLE = _only(INNER, "inner_dup", "inner_reorder", "inner_reorder_ns", "gso")
HONEST_INNER = _some(**_INNER_GENTLE, inner_loss=_percent(round(MOST_INNER_LOSS * 100))) | _some(
    **_INNER_GENTLE, **_only(INNER, "inner_drop_from_ns", "inner_drop_to_ns")
)
HOSTS: dict[str, st.SearchStrategy[Any]] = {
    "memory": st.sampled_from([65_536, 200_000, 1_000_000]),
    "maxconn": st.integers(1, 5),
    "sndbuf": st.sampled_from([1, 2000, 10_000]),
    "rcvbuf": st.sampled_from([1, 2000, 10_000]),
    "krcvbuf": st.sampled_from([300, 1000, 3000, 20_000]),
    "isn": st.integers(0, 2**32 - 1) | st.just(2**32 - 20_000),
    "ksack": st.just(1),
    "kts": st.just(1),
    "kws": st.just(1),
    "ecn_off": st.just(1),
    "accecn_off": st.just(1),
    "negotiate": st.integers(1, 2),  # allowed, demanded
    "negotiate_b": st.integers(1, 3),
    "syn_cookies": st.integers(1, 2),  # always, never
    "half_open": st.integers(1, 3),
    "latency": st.integers(0, 2),  # auto, low, normal
    "latency_b": st.integers(0, 2),
    "budget_ppm": st.sampled_from([1, 1_000_000, 2**32 - 1]),
    "residual_ppm": st.sampled_from([1, 1_000_000]),
    "parity_ppm": st.sampled_from([1, 1_000_000, 2**32 - 1]),
    "timewait_ns": st.sampled_from([1, S]),
}
APPS: dict[str, st.SearchStrategy[Any]] = {
    "up": st.integers(0, 100_000),
    "down": st.integers(0, 100_000),
    "conns": st.integers(2, 8),
    "gap_ns": _ms(100),
    "pause_ns": st.sampled_from([2 * S, 30 * S]),
    "abort_at": st.integers(1, 60_000),
    "abort_at_b": st.integers(1, 60_000),
    "close_at": st.integers(1, 60_000),
    "down_after_ns": st.sampled_from([2 * S, 300 * S]),
    "write_bytes": st.sampled_from([100, 5000, 40_000]),
    "write_gap_ns": st.sampled_from([10 * MS, 300 * MS, 20 * S]),
    "read_bytes": st.sampled_from([500, 5000, 40_000]),
    "read_gap_ns": st.sampled_from([10 * MS, 300 * MS]),
    "again": st.integers(1, 2),
    "simopen": st.just(1),
}
_NOTHING: st.SearchStrategy[Case] = st.just({})
_DIRECT: st.SearchStrategy[Case] = st.fixed_dictionaries(
    {"direct": st.just(1)}, optional={"wild_sack": st.just(1)}
)
HONEST_PEER: st.SearchStrategy[Case] = _NOTHING | _DIRECT
_WILD: st.SearchStrategy[Case] = st.fixed_dictionaries(
    {"direct": st.just(1)},
    optional={"wild_sack": st.just(1)} | {f"wild_{what}": _percent(50) for what in WILD},
)
PEER = HONEST_PEER | _WILD


def _without(
    group: dict[str, st.SearchStrategy[Any]], *names: str
) -> dict[str, st.SearchStrategy[Any]]:
    return {name: words for name, words in group.items() if name not in names}


def _drop_halves(case: Case) -> None:
    """Takes away what means nothing, or nothing sane, beside the rest."""
    # Each is nothing without the other
    for pair in (
        ("write_bytes", "write_gap_ns"),
        ("read_bytes", "read_gap_ns"),
        ("cut_from_ns", "cut_to_ns"),
    ):
        if not all(word in case for word in pair):
            for word in pair:
                case.pop(word, None)
    if (
        "again" in case
    ):  # the ports are used again when both ends are done, so both must end by themselves
        for word in ("simopen", "abort_at", "abort_at_b", "write_gap_ns", "read_gap_ns"):
            case.pop(word, None)


def _put_together(parts: tuple[int, str, Case, Case, Case, Case, Case, Case, Case]) -> Case:
    seed, congestion, *groups = parts
    case: Case = {"seed": seed, "cc": congestion, "up": 30_000, "down": 30_000}
    for group in groups:
        case = case | group
    if case.get("v6"):
        case["mtu"] = max(1280, int(case.get("mtu", 1500)))
        for word in ("icmp_mtu", "hole_bytes"):
            if word in case:
                case[word] = max(1281, int(case[word]))
    if any(int(case.get(word, 0)) in range(1, TINY_WINDOW_BYTES) for word in ("sndbuf", "rcvbuf")):
        for word in ("up", "down"):
            case[word] = min(int(case[word]), TINY_VOLUME_BYTES)
    if case.get("direct"):
        # What only two cores do, or a kern is too simple for: it knows nothing of path MTU,
        # and no congestion
        for word in ("simopen", "icmp_mtu", "hole_bytes", "again"):
            case.pop(word, None)
    _drop_halves(case)
    return case


def _cases(*groups: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return st.tuples(st.integers(1, 2**31), st.sampled_from(CONTROLS), *groups).map(_put_together)


def wild_cases() -> st.SearchStrategy[Case]:
    """Everything that can be said about a simulation, in every mixture."""
    return _cases(
        _some(**LINK),
        _some(**MIDDLEBOXES),
        TROUBLE,
        _some(**INNER),
        _some(**HOSTS),
        _some(**APPS),
        PEER,
    )


_HONEST_BOXES = MIDDLEBOXES["parity_box"].filter(lambda box: box not in LYING_BOXES)


def honest_cases() -> st.SearchStrategy[Case]:
    """As hard as may be without an excuse: what excuse() says of each is None."""
    return _cases(
        _some(**HONEST_LINK),
        _some(
            **_without(MIDDLEBOXES, "synloss", "hole_bytes", "parity_box"), parity_box=_HONEST_BOXES
        ),
        _some(**_without(HOSTS, "maxconn", "half_open", "timewait_ns", "memory")),
        _some(**_without(APPS, "abort_at", "abort_at_b")),
        HONEST_INNER,
        HONEST_TROUBLE,
        HONEST_PEER,
    ).map(_unexcused)


# A stream that parity is sent for: it pauses, is no thin one, and something of it is lost
_STREAM: dict[str, st.SearchStrategy[Any]] = {
    "write_bytes": st.integers(2000, 40_000),
    "write_gap_ns": st.sampled_from([2, 8, 16, 30]).map(MS.__mul__),
    "up": st.integers(100_000, 1_500_000),
    "loss": st.integers(2, round(MOST_LOSS * 100)).map(lambda percent: percent / 100),
    "delay_ns": st.integers(0, 100).map(MS.__mul__),
}
_AGREED: Case = {"negotiate": 1, "negotiate_b": 2, "latency": 1, "latency_b": 1}


def parity_cases() -> st.SearchStrategy[Case]:
    """Streams between two cores that have agreed on forward error correction, on paths as those of
    honest_cases(), often with a middlebox that bends parity.
    """
    words = _some(
        **_only(HONEST_LINK, "dup", "reorder", "reorder_ns", "corrupt", "mtu", "v6"),
        **_only(MIDDLEBOXES, "parity_box"),
        **_only(HOSTS, "isn", "kts", "ecn_off", "accecn_off", "parity_ppm", "residual_ppm"),
        **_only(APPS, "down", "conns", "gap_ns", "read_bytes", "read_gap_ns"),
    )
    return _cases(words, st.fixed_dictionaries(_STREAM), st.just(_AGREED), *[st.just({})] * 4).map(
        _unexcused
    )


def _unexcused(case: Case) -> Case:
    """What two groups may not say together."""
    if case.get("direct"):
        for word in ("rate_Bps", "queue_bytes"):
            case.pop(word, None)
    if "again" in case and "stall_from_ns" in case:
        del case["again"]
    if case.get("agree_box") == DROPS_SYNS and any(
        case.get(word) for word in ("loss", "loss_back", "corrupt", "synloss", "cut_to_ns")
    ):
        del case["agree_box"]
    for word, demand in (("negotiate", DEMAND), ("negotiate_b", DEMAND + 1)):
        if case.get(word) == demand:
            case[word] = demand - 1
    return case


def words(case: Mapping[str, object]) -> list[str]:
    """A case as the simulator's arguments."""
    return [f"{word}={value}" for word, value in case.items()]


# Where any of these is said, a connection may well end with an error, or an app resets it
_MAY_FAIL = (
    "abort_all_ns", "refuse", "mute", "unreach", "icmp_code", "memory", "maxconn", "half_open", "abort_at",
    "abort_at_b", "forge_every", "stop_early",
)  # fmt: skip


def excuse(case: Mapping[str, object]) -> str | None:
    """Why a connection may end with an error; None: it must deliver."""

    def said(word: str, otherwise: float = 0) -> float:
        return float(str(case.get(word, otherwise)))

    loss = max(said("loss"), said("loss_back"))
    inner_down = bool(said("inner_drop_to_ns")) and "inner_drop_from_ns" in case
    reasons = {
        **{f"{word} ends connections": bool(said(word)) for word in _MAY_FAIL},
        "parity that lies ends connections": said("parity_box") in LYING_BOXES,
        "a wild peer": any(said(f"wild_{what}") for what in WILD),
        "so much is lost that all tries of a handshake may be": (
            loss > MOST_LOSS
            or said("corrupt") > MOST_CORRUPT
            or said("inner_loss") > MOST_INNER_LOSS
        ),
        "the path is down for longer than an orphan waits": said("cut_to_ns") > LONGEST_CUT_S * S,
        "of the tries that are left all may be lost": (
            bool(said("cut_to_ns") or said("synloss") or said("agree_box") == DROPS_SYNS)
            and bool(loss or said("corrupt"))
        ),
        "an agreement that is demanded may not come": (
            said("negotiate") == DEMAND or said("negotiate_b") == DEMAND + 1
        ),
        "the same on the inner leg": (
            inner_down
            and (bool(said("inner_loss")) or said("inner_drop_to_ns") > LONGEST_CUT_S * S)
        ),
        "a black hole is found by full-sized segments: a shorter one that is too long may time out": bool(
            said("hole_bytes")
        ),
        "a FIN that comes again may find its connection gone": (
            said("timewait_ns", TIME_WAIT_NS) < TIME_WAIT_NS
        ),
        "a peer without congestion control fills a slow link until it gives up": (
            bool(said("direct")) and ("rate_Bps" in case or "queue_bytes" in case)
        ),
    }
    return next((why for why, is_so in reasons.items() if is_so), None)


def must_complete(case: Mapping[str, object]) -> bool:
    """Whether no excuse is left."""
    return excuse(case) is None


def judge(case: Mapping[str, object], result: Result) -> None:
    """Raises ViolationError unless every connection delivered exactly or reported an error, and
    nothing is left.
    """
    conns = int(str(case.get("conns", 1)))
    for word, meaning in (
        ("wrong", "bytes arrived that were not sent there"),
        ("truncated", "the end of a stream arrived, and not all of it before"),
        ("hung", "an app waits for ever"),
    ):
        if result[word]:
            raise ViolationError(f"{meaning} ({word}={result[word]})")
    if result["complete"] + result["errors"] + result["aborted"] != conns:
        raise ViolationError(f"{conns} connections, and other verdicts than that many")
    for side in "ab":
        for word, nothing in (("left", 0), ("chunks", 0), ("disowned", result[f"owned_{side}"])):
            if result.get(f"{word}_{side}", nothing) != nothing:
                raise ViolationError(
                    f"{word}_{side} is {result[f'{word}_{side}']}, not {nothing}, when all is over"
                )
    if must_complete(case) and result["complete"] != conns:
        raise ViolationError(f"{result['errors']} of {conns} connections failed with no reason")


def run(binary: Path, case: Mapping[str, object]) -> Result:
    """One simulation, judged. Raises ViolationError."""
    try:
        done = subprocess.run(
            [binary, *words(ALWAYS), *words(case)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_RUN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ViolationError(f"the simulation did not end within {LONGEST_RUN_S} s") from None
    result = {
        name: int(value)
        for name, value in (x.split("=") for x in done.stdout.splitlines() if "=" in x)
    }
    if "complete" not in result:
        how = (
            f"signal {signal.Signals(-done.returncode).name}"
            if done.returncode < 0
            else done.stdout.strip()
        )
        broken = [
            x
            for x in done.stderr.splitlines()
            if "broken" in x or "ERROR" in x or "runtime error" in x
        ]
        raise ViolationError(
            broken[0].strip() if broken else f"the simulator ended by {how or done.returncode}"
        )
    judge(case, result)
    return result
