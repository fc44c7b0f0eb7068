"""A pickle as data: the opcodes of protocols 0 to 5, for a machine that can call nothing.

Python's own unpickler calls what the stream names; overriding its `find_class` narrows the names,
yet reduce, build and the rest still call whatever it returns. Here there is nothing to call, see
machine.py, and no flag that would change it.
Source of the opcodes: the documentation in Python's pickletools, and PEPs 307, 3154 and 574.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from lidar_cli.checkpoints.lazy import Malformed
from lidar_cli.checkpoints.machine import Machine
from lidar_cli.checkpoints.standins import CONTAINER, SET, key

MAX_OPCODES = 5_000_000  # a container each is charged, see Budget
MAX_INTEGER = 1024  # bytes; Python prints no integer much longer than that
PROTOCOL = 5
STOP = ord(".")


class Unpickler(Machine):
    """A machine that reads one pickle."""

    def load(self) -> Any:
        """The value of the pickle.

        Raises Malformed if the stream is damaged, Forbidden if it names what could only do harm.
        """
        try:
            for _ in range(MAX_OPCODES):
                opcode = self.take(1)[0]
                if opcode == STOP:
                    return self.result()
                OPCODES[opcode](self)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            StopIteration,
            TypeError,
            ValueError,
            struct.error,
        ) as error:  # a stack without the value that an opcode needs, or one of another type
            raise Malformed(f"its pickle is damaged ({type(error).__name__})") from error
        raise Malformed(f"its pickle has more than {MAX_OPCODES:,} steps")


def _proto(m: Machine) -> None:
    if m.take(1)[0] > PROTOCOL:
        raise Malformed("its pickle has an unknown protocol")


def _frame(m: Machine) -> None:
    if m.number("<Q") > m.left:
        raise Malformed("its pickle ends early")


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value)


def _new(kind: Callable[[], Any], cost: int = CONTAINER) -> Callable[[Machine], None]:
    def make(m: Machine) -> None:
        m.budget.spend(cost)
        m.stack.append(kind())

    return make


def _number(format: str) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(m.number(format))


def _integer_line(m: Machine) -> None:
    text = m.line()
    m.stack.append(text == b"01" if text in (b"00", b"01") else int(text.removesuffix(b"L")))


def _integer(format: str) -> Callable[[Machine], None]:
    def read(m: Machine) -> None:
        count = m.number(format)
        if count > MAX_INTEGER:
            raise Malformed("its pickle has an integer without measure")
        m.stack.append(int.from_bytes(m.take(count), "little", signed=True))

    return read


def _float_line(m: Machine) -> None:
    m.stack.append(float(m.line()))


def _bytes(format: str) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(m.take(m.number(format)))


def _bytearray(m: Machine) -> None:
    m.stack.append(bytearray(m.take(m.number("<Q"))))


def _text(format: str) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(m.take(m.number(format)).decode("utf-8", "surrogatepass"))


def _text_line(m: Machine) -> None:
    m.stack.append(m.line().decode("raw-unicode-escape"))


def _old_text(format: str) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(_decoded(m.take(m.number(format))))


def _old_text_line(m: Machine) -> None:
    quoted = m.line()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
        raise Malformed("its pickle has text without quotes")
    m.stack.append(_decoded(codecs.escape_decode(quoted[1:-1])[0]))


def _decoded(content: bytes) -> str:
    """The text of Python 2, which may be bytes: those are read as Latin-1, which loses nothing."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _mark(m: Machine) -> None:
    m.budget.spend(CONTAINER)
    m.marks.append(m.stack)
    m.stack = []


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.marked()


def _pop_mark(m: Machine) -> None:
    m.marked()


def _duplicate(m: Machine) -> None:
    m.stack.append(m.stack[-1])


def _tuple(m: Machine) -> None:
    values = m.marked()
    m.stack.append(tuple(values))


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def pack(m: Machine) -> None:
        if len(m.stack) < count:
            raise Malformed("its pickle is damaged")
        m.budget.spend(CONTAINER)
        values = tuple(m.stack[-count:])
        del m.stack[-count:]
        m.stack.append(values)

    return pack


def _list(m: Machine) -> None:
    values = m.marked()
    m.stack.append(values)


def _dict(m: Machine) -> None:
    values = m.marked()
    m.stack.append({})
    m.update(values)


def _frozenset(m: Machine) -> None:
    values = m.marked()
    m.stack.append(frozenset([key(value, m.budget) for value in values]))


def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.extend([value])


def _appends(m: Machine) -> None:
    values = m.marked()
    m.extend(values)


def _set_item(m: Machine) -> None:
    value = m.stack.pop()
    name = m.stack.pop()
    m.update([name, value])


def _set_items(m: Machine) -> None:
    values = m.marked()
    m.update(values)


def _add_items(m: Machine) -> None:
    values = m.marked()
    if isinstance(m.stack[-1], set):
        m.stack[-1].update([key(value, m.budget) for value in values])
    else:
        m.extend(values)


def _get(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(m.memo[read(m)])


def _put(read: Callable[[Machine], int]) -> Callable[[Machine], None]:
    return lambda m: m.store(read(m))


def _global(m: Machine) -> None:
    module = m.name_line()
    m.stack.append(m.name(module, m.name_line()))


def _stack_global(m: Machine) -> None:
    name = m.stack.pop()
    m.stack.append(m.name(m.stack.pop(), name))


def _extension(format: str) -> Callable[[Machine], None]:
    # The registry of the running program says what the number means; it is not asked.
    return lambda m: m.stack.append(m.name("copyreg", f"extension {m.number(format)}"))


def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    m.stack.append(m.make(m.stack.pop(), args))


def _new_object_with_names(m: Machine) -> None:
    kwargs = m.stack.pop()
    args = m.stack.pop()
    m.stack.append(m.make(m.stack.pop(), args, kwargs))


def _instance(m: Machine) -> None:
    module = m.name_line()
    what = m.name(module, m.name_line())
    args = tuple(m.marked())
    m.stack.append(m.make(what, args))


def _object(m: Machine) -> None:
    what, *args = m.marked()
    m.stack.append(m.make(what, tuple(args)))


def _build(m: Machine) -> None:
    m.build()


def _persistent(read: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def load(m: Machine) -> None:
        if m.persistent is None:
            raise Malformed("its pickle has a reference to something outside")
        m.stack.append(m.persistent(read(m)))

    return load


def _buffer(m: Machine) -> None:
    raise Malformed("its pickle has a buffer outside")


OPCODES: dict[int, Callable[[Machine], None]] = {
    code[0]: action
    for code, action in {
        b"\x80": _proto, b"\x95": _frame,
        b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False),
        b"I": _integer_line, b"L": _integer_line, b"F": _float_line,
        b"J": _number("<i"), b"K": _number("<B"), b"M": _number("<H"), b"G": _number(">d"),
        b"\x8a": _integer("<B"), b"\x8b": _integer("<I"),
        b"C": _bytes("<B"), b"B": _bytes("<I"), b"\x8e": _bytes("<Q"), b"\x96": _bytearray,
        b"V": _text_line, b"S": _old_text_line,
        b"\x8c": _text("<B"), b"X": _text("<I"), b"\x8d": _text("<Q"),
        b"U": _old_text("<B"), b"T": _old_text("<I"),
        b"(": _mark, b"0": _pop, b"1": _pop_mark, b"2": _duplicate,
        b")": _new(tuple), b"]": _new(list), b"}": _new(dict), b"\x8f": _new(set, SET),
        b"t": _tuple, b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3),
        b"l": _list, b"d": _dict, b"\x91": _frozenset,
        b"a": _append, b"e": _appends, b"s": _set_item, b"u": _set_items, b"\x90": _add_items,
        b"g": _get(lambda m: int(m.line())), b"h": _get(lambda m: m.number("<B")),
        b"j": _get(lambda m: m.number("<I")),
        b"p": _put(lambda m: int(m.line())), b"q": _put(lambda m: m.number("<B")),
        b"r": _put(lambda m: m.number("<I")), b"\x94": _put(lambda m: len(m.memo)),
        b"c": _global, b"\x93": _stack_global,
        b"\x82": _extension("<B"), b"\x83": _extension("<H"), b"\x84": _extension("<i"),
        b"R": _reduce, b"\x81": _reduce, b"\x92": _new_object_with_names,
        b"i": _instance, b"o": _object, b"b": _build,
        b"P": _persistent(lambda m: m.line()), b"Q": _persistent(lambda m: m.stack.pop()),
        b"\x97": _buffer, b"\x98": _buffer,
    }.items()
}  # fmt: skip
