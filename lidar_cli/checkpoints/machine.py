"""The state of an unpickler, and all that an opcode may do to it: nothing in it can be called.

A name becomes a `Global`; "call this with that" becomes a plain value, by a function of ours, for
the few names in rebuild.py, and a `StandIn` for all others. Every length is compared with what is
left of the stream before memory is taken for it, values are shared and never copied, and what is
copied is charged to a budget.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from lidar_cli.checkpoints.lazy import LazyTensor, Malformed
from lidar_cli.checkpoints.rebuild import HANDLERS, ArrayType, fill_array, is_foreign, is_unfilled
from lidar_cli.checkpoints.standins import (
    CONTAINER,
    GETATTR,
    Budget,
    Global,
    StandIn,
    key,
    qualified,
    refuse,
)

MAX_LINE = 4000  # bytes of an argument that a line's end delimits
INHERITED_DICT, INHERITED_LIST = "builtins.dict", "builtins.list"


class Machine:
    """Reads a file from where it stands, and nothing beyond `end`.

    persistent: what to make of the persistent ids, by which torch writes storages.
    budget: shared by all pickles of a file.
    names: the names of foreign classes and functions met, in the order of the stream.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.file = file
        self.left = end - file.tell()
        self.budget = budget
        self.persistent = persistent
        self.names: dict[str, None] = {}
        self.globals: dict[str, Global] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.methods = 0  # bound methods met

    def take(self, count: int) -> bytes:
        """The next bytes; raises Malformed rather than reading past the end."""
        if not 0 <= count <= self.left:
            raise Malformed("its pickle ends early")
        content = self.file.read(count)
        if len(content) != count:
            raise Malformed("its pickle ends early")
        self.left -= count
        return content

    def number(self, format: str) -> int:
        """The next integer, by its format of `struct`."""
        value: int = struct.unpack(format, self.take(struct.calcsize(format)))[0]
        return value

    def line(self) -> bytes:
        """The rest of the line, without its end."""
        content = self.file.readline(min(self.left, MAX_LINE))
        if not content.endswith(b"\n"):
            raise Malformed("its pickle has a line without end")
        self.left -= len(content)
        return content[:-1]

    def name_line(self) -> str:
        """The rest of the line, part of a qualified name."""
        return self.line().decode("utf-8")

    def marked(self) -> list[Any]:
        """All that was pushed since the last mark, which is removed."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def name(self, module: object, name: object) -> Global:
        """The record of a name, the same for each time that it is met."""
        whole = qualified(module, name)
        if whole not in self.globals:
            self.globals[whole] = Global(whole)
            if is_foreign(whole):
                self.names[whole] = None
        return self.globals[whole]

    def make(self, what: Any, args: Any, kwargs: Any = None) -> Any:
        """What the stream wants called with arguments: a plain value or a stand-in."""
        if not isinstance(args, tuple):
            raise Malformed("its pickle calls something without arguments")
        if isinstance(what, StandIn):
            return StandIn(what.name, args, kwargs)
        if not isinstance(what, Global):
            raise Malformed("its pickle calls what is neither class nor function")
        if what.name == GETATTR:
            return self._method(args, kwargs)
        if what.name in ("copyreg.__newobj__", "copyreg.__newobj_ex__") and args:
            if isinstance(args[0], Global) and not args[0].name.startswith("copyreg."):
                self.budget.spend(len(args))
                rest = args[1:] if what.name == "copyreg.__newobj__" else args[1]
                return self.make(args[0], rest)
        elif what.name == "copyreg._reconstructor" and len(args) == 3:
            return self._reconstructed(*args)
        elif what.name in HANDLERS:
            return HANDLERS[what.name](self.budget, args)
        return StandIn(what.name, args, kwargs)

    def _method(self, args: tuple[Any, ...], kwargs: Any) -> StandIn:
        """A bound method, which pickles name as getattr(object, name); nothing is looked up.

        Schedulers of honest checkpoints hold some. All other uses of getattr are refused.
        """
        whose, name = args if len(args) == 2 else (None, "")
        public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
        if not isinstance(whose, StandIn) or not public or kwargs is not None:
            refuse(GETATTR)
        self.methods += 1
        return StandIn(GETATTR, args, kwargs)

    def result(self) -> Any:
        """The value on top of the stack; raises Forbidden if getattr was named for no method."""
        if GETATTR in self.globals and not self.methods:
            refuse(GETATTR)
        return self.stack.pop()

    def _reconstructed(self, what: Any, base: Any, content: Any) -> Any:
        """An object as protocols 0 and 1 make it: a class, its built-in base, the base's value."""
        made = StandIn(what.name, (content,))
        if isinstance(base, Global) and base.name in (INHERITED_DICT, INHERITED_LIST):
            value = HANDLERS[base.name](self.budget, (content,))
            if what.name in HANDLERS:
                return value
            if isinstance(value, dict):
                made.entries = value
            else:
                made.elements = value
        return made

    def store(self, index: int) -> None:
        """Remember the top of the stack."""
        self.budget.spend(CONTAINER)
        self.memo[index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top of the stack, or to a stand-in for a subclass of list."""
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.elements = [] if target.elements is None else target.elements
            target = target.elements
        if not isinstance(target, list):
            raise Malformed("its pickle appends to what is no list")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        """Set entries of the dict on top of the stack, or of a stand-in for a subclass."""
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict) or len(values) % 2:
            raise Malformed("its pickle sets entries of what is no dict")
        for i in range(0, len(values), 2):
            target[key(values[i], self.budget)] = values[i + 1]

    def build(self) -> None:
        """Give the object below the top of the stack its state, which is the top."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.state = state
        elif isinstance(target, LazyTensor) and is_unfilled(target):
            fill_array(target, state, self.budget)
        elif isinstance(target, ArrayType) and state[1] in ("<", ">"):
            target.order = state[1]
        # The attributes of a plain container, such as _metadata of a state dict, are left out.
