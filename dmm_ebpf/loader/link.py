# SPDX-License-Identifier: Apache-2.0
"""A program with the steps of its loops behind it, as the kernel takes it, and the BTF that
goes with that.

C names a step by its number in spec.STEPS, in a 64-bit load marked BPF_PSEUDO_FUNC; here
that becomes the distance to the step's first instruction. One that it calls it names as a helper of
a number that no helper has, CALLS and the step's. The kernel wants a function type for each
function of a program that has such loads: Documentation/bpf/btf.rst, BTF_KIND_FUNC and
bpf_func_info. What is called is a global function there, which the verifier looks at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

INSN = struct.Struct("=BBhi")  # struct bpf_insn: code, dst | src << 4, off, imm
LD_IMM64 = 0x18
CALL = 0x85
PSEUDO_MAP_FD, PSEUDO_FUNC = 1, 4
PSEUDO_CALL = 1
CALLS = 1 << 20  # no helper's number

# bpf_loop() gives a step the turn's number in r1, which none wants, and the argument in r2; C takes
# its one in r1.
_TAKE_ARGUMENT = INSN.pack(0xBF, 2 << 4 | 1, 0, 0)

_KIND_INT, _KIND_FUNC, _KIND_FUNC_PROTO = 1 << 24, 12 << 24, 13 << 24
_KIND_PTR, _KIND_STRUCT = 2 << 24, 4 << 24
_GLOBAL = 1  # BTF_FUNC_GLOBAL
_SIGNED_32 = 1 << 24 | 32


@dataclass(frozen=True)
class Linked:
    """code: instructions. functions: of each, the program itself first, name and
    first instruction's number.
    """

    code: bytes
    functions: Sequence[tuple[str, int]] = field(default=())


def references(code: bytes, pseudo: int) -> Iterator[tuple[int, int]]:
    """(byte offset, immediate) of every 64-bit load of that kind. code: struct bpf_insn."""
    at = 0
    while at < len(code):
        opcode, registers, _, imm = INSN.unpack_from(code, at)
        if opcode == LD_IMM64:
            if registers >> 4 == pseudo:
                yield at, imm
            at += INSN.size  # its second half is data
        at += INSN.size


def calls(code: bytes) -> Iterator[tuple[int, int]]:
    """(byte offset, step's number) of every call of a step. code: struct bpf_insn."""
    at = 0
    while at < len(code):
        opcode, registers, _, imm = INSN.unpack_from(code, at)
        if opcode == CALL and not registers and imm >= CALLS:
            yield at, imm - CALLS
        at += INSN.size * (2 if opcode == LD_IMM64 else 1)


def uses(code: bytes) -> set[int]:
    """The numbers of the steps that it names or calls itself."""
    return {number for _, number in (*references(code, PSEUDO_FUNC), *calls(code))}


def set_immediate(code: bytearray, at: int, imm: int) -> None:
    """Of the instruction at byte offset at."""
    opcode, registers, off, _ = INSN.unpack_from(code, at)
    INSN.pack_into(code, at, opcode, registers, off, imm)


def link(name: str, code: Mapping[str, bytes], steps: Sequence[str]) -> Linked:
    """The program code[name] with the steps that it needs, and those that they need, each once."""
    out = bytearray(code[name])
    starts: dict[int, int] = {}
    done = 0

    def place(number: int, before: bytes) -> int:
        if number not in starts:
            starts[number] = len(out)
            out.extend(before + code[steps[number]])
        return starts[number]

    while done < len(out):
        part = bytes(out[done:])
        named = [(done + at, number) for at, number in references(part, PSEUDO_FUNC)]
        called = [(done + at, number) for at, number in calls(part)]
        done = len(out)
        for at, number in named:
            start = place(number, _TAKE_ARGUMENT)
            set_immediate(out, at, (start - at) // INSN.size - 1)
        for at, number in called:
            distance = (place(number, b"") - at) // INSN.size - 1
            INSN.pack_into(out, at, CALL, PSEUDO_CALL << 4, 0, distance)
    functions = [(name, 0), *((steps[number], at // INSN.size) for number, at in starts.items())]
    return Linked(bytes(out), functions if starts else ())


def function_btf(names: Sequence[str], called: Mapping[str, int]) -> bytes:
    """BTF with a static function int name(void) for each; the first has type id FUNCTION_TYPE,
    the rest follow. called: of those that are called, the bytes of what their argument points to.
    """
    strings = bytearray(b"\0int\0")
    types = struct.pack("=4I", 1, _KIND_INT, 4, _SIGNED_32)
    types += struct.pack("=3I", 0, _KIND_FUNC_PROTO, 1)
    behind = b""
    free = FUNCTION_TYPE + len(names)
    for name in names:
        at = len(strings)
        strings += name.encode() + b"\0"
        if name not in called:
            types += struct.pack("=3I", at, _KIND_FUNC, 2)
            continue
        types += struct.pack("=3I", at, _KIND_FUNC | _GLOBAL, free + 2)
        behind += struct.pack("=3I", at, _KIND_STRUCT, called[name])
        behind += struct.pack("=3I", 0, _KIND_PTR, free)
        behind += struct.pack("=5I", 0, _KIND_FUNC_PROTO | 1, 1, at, free + 1)
        free += 3
    return btf(types + behind, bytes(strings))


FUNCTION_TYPE = 3


def function_info(linked: Linked) -> bytes:
    """struct bpf_func_info for each function, with the type ids of function_btf()."""
    starts = enumerate((start for _, start in linked.functions), FUNCTION_TYPE)
    return b"".join(struct.pack("=2I", start, type_id) for type_id, start in starts)


def btf(types: bytes, strings: bytes) -> bytes:
    """struct btf_header, then types and strings."""
    sizes = (0, len(types), len(types), len(strings))
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + types + strings
