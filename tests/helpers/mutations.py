"""Files with small damage, for tests that they end in one line of ours or open as before."""

from __future__ import annotations

import itertools
import pickletools
import random
from collections.abc import Iterator
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor

OPCODES = [ord(code.code) for code in pickletools.opcodes]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes, most of them where names and sizes lie."""
    changed = bytearray(content)
    first = content.find(b"\x80") if content.startswith(b"PK") else 0
    for _ in range(draw.randint(1, 4)):
        size = len(changed)
        if not size:
            break
        near = draw.randrange(first, min(size, first + 1500)) if size > first else 0
        at = draw.choice([near, near, draw.randrange(size), max(0, size - draw.randint(1, 400))])
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            changed[at] = draw.choice(OPCODES)
        elif kind == 3:
            del changed[at : at + draw.randint(1, 8)]
        elif kind == 4:
            changed[at:at] = changed[max(0, at - draw.randint(1, 16)) : at]
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def tensors_in(tree: Any) -> Iterator[LazyTensor]:
    """All tensors of what was read, each container visited once."""
    todo, seen = [tree], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, LazyTensor):
            yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value


def steps(pickle: bytes) -> list[bytes]:
    """The opcodes of a pickle with their arguments."""
    places = [place for _, _, place in pickletools.genops(pickle) if place is not None]
    return [pickle[a:b] for a, b in itertools.pairwise([*places, len(pickle)])]


def restructured(pickle: bytes, draw: random.Random) -> bytes:
    """One or two changes of whole opcodes: left out, twice, exchanged, another, another number."""
    parts = steps(pickle)
    for _ in range(draw.randint(1, 2)):
        at, other = draw.randrange(len(parts)), draw.randrange(len(parts))
        kind = draw.randrange(6)
        if kind == 0:
            parts[at] = b""
        elif kind == 1:
            parts[at] = parts[at] * draw.choice([2, 3, 1000])
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = parts[other]
        elif kind == 4:
            parts[at] = bytes([draw.choice(OPCODES)]) + parts[at][1:]
        else:
            numbers = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
            size = max(0, min(len(parts[at]) - 1, 8))
            number = draw.choice(numbers) % 256**size
            parts[at] = parts[at][:1] + number.to_bytes(size, "little") + parts[at][9:]
    return b"".join(parts)
