# SPDX-License-Identifier: Apache-2.0
"""Numbers in digits, however many: none of them is a bug's sentence."""

from __future__ import annotations

import pytest

from dmm_ebpf.central import place
from dmm_ebpf.cli import faults, where
from dmm_ebpf.digits import whole
from dmm_ebpf.errors import DmmError
from dmm_ebpf.show import flowfilter

MANY = "9" * 5000  # int() takes 4,300


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("99", 99),
        ("0" * 5000 + "7", 7),
        ("000", 0),
        ("100", None),
        (MANY, None),
        ("", None),
        ("-1", None),
        ("1_0", None),
        (" 1", None),
        ("٣", None),
        ("²", None),
    ],
)
def test_a_number_is_digits_and_below_the_bound(text, number) -> None:
    assert whole(text, 100) == number


@pytest.mark.parametrize(
    "read",
    [
        lambda: faults.which("drop", MANY),
        lambda: where.number(MANY, "attach"),
        lambda: flowfilter.parse_port(MANY, "take it"),
        lambda: flowfilter.parse_pid(MANY),
        lambda: place.parse(f"etcd://host:{MANY}/dmm"),
    ],
)
def test_too_many_digits_are_refused_in_a_sentence(read) -> None:
    with pytest.raises(DmmError) as refused:
        read()
    assert MANY[:50] in str(refused.value)
