"""What a compiled program sends between devices, read off its HLO text: bytes by kind of collective.

`cost_analysis` counts the body of a loop once; here a loop's body counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OP = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_BITS = {"pred": 8}


def collectives(text: str, devices: int) -> dict[str, float]:
    """Bytes that one device sends in one run of the program, by kind, with a ring's share for each kind.

    Args:
      text: `compiled.as_text()`.
      devices: how many there are; the group where an instruction names none.

    A loop without a fixed count runs as often as the largest constant of its condition, the most it can, or once where
    there is none (the head's loss, which sends nothing inside unless the vocabulary is split).
    """
    bodies, entry = _computations(text)
    sent: dict[str, float] = defaultdict(float)
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            found = _OP.search(line)
            if not found or "-done(" in line:
                continue
            result, kind, start = found.groups()
            sizes = [_bytes(*array) for array in _ARRAY.findall(result)]
            # A start carries its operands too: what comes out is the second half.
            size = sum(sizes[len(sizes) // 2 :]) if start and len(sizes) > 1 and kind != "all-reduce" else sum(sizes)
            n = _group(line, devices)
            if name.startswith("all-reduce-scatter"):  # how the TPU's compiler writes a reduce-scatter
                kind, size = "reduce-scatter", size / n
            share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
            sent[kind] += times * size * share.get(kind, (n - 1) / n)
    return dict(sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # alone: attributes of a kernel may go over several lines, and end in one too
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, float]:
    """How often each computation runs."""
    times: dict[str, float] = defaultdict(float)

    def visit(name: str, count: float) -> None:
        times[name] += count
        for line in bodies[name]:
            loop = " while(" in line
            inside = count * _trips(line, bodies) if loop else count
            for called in _called(line):
                if called in bodies:
                    visit(called, inside)

    visit(entry, 1.0)
    return times


def _called(line: str) -> Iterator[str]:
    for names in _CALLS.findall(line):
        yield from (name.strip().lstrip("%") for name in names.strip("{}").split(","))


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    constants = [
        int(value)
        for text in bodies.get(condition[1] if condition else "", ())
        for value in re.findall(r"s32\[\][^=]*constant\((\d+)\)", text)
    ]
    return max(constants, default=1)


def _bytes(dtype: str, shape: str) -> float:
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return bits / 8 * math.prod(int(n) for n in shape.split(",") if n)


def _group(line: str, devices: int) -> int:
    """Devices that exchange in one group of a collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", line)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'(\w+)'", mesh[2]))
    return devices
