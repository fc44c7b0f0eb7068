"""Tensors that stay in their file until they are needed, and the types of their elements.

All sizes in a file are checked when a LazyTensor is created, before memory is allocated: a view
must end inside its storage, a storage inside the file, and a tensor may have at most OVERLAP bytes
more than its storage. Only `materialise` imports torch.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, Union

from lidar_cli.errors import CheckpointError
from lidar_cli.runtime.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

UNSET_PATH = Path()  # used in the child process; the parent process fills in the path
EXPECTED = "expected a file of torch.save or safetensors"
MAX_DIMENSIONS = 64
MAX_NUMBER = 2**62  # torch's sizes are signed 64-bit numbers
OVERLAP = 2**20  # bytes; an expanded view, whose elements share memory, exceeds its storage


class ElementType(NamedTuple):
    """An element type and its names; a name is '' where it does not exist."""

    name: str  # in torch
    nbytes: int
    safetensors: str = ""
    storage: str = ""  # torch's storage class
    numpy: str = ""  # kind and size of the dtype
    struct: str = ""  # format characters of the struct module


ELEMENT_TYPES = (
    ElementType("float64", 8, "F64", "DoubleStorage", "f8", "d"),
    ElementType("float32", 4, "F32", "FloatStorage", "f4", "f"),
    ElementType("float16", 2, "F16", "HalfStorage", "f2", "e"),
    ElementType("bfloat16", 2, "BF16", "BFloat16Storage"),
    ElementType("float8_e4m3fn", 1, "F8_E4M3"),
    ElementType("float8_e4m3fnuz", 1, "F8_E4M3FNUZ"),
    ElementType("float8_e5m2", 1, "F8_E5M2"),
    ElementType("float8_e5m2fnuz", 1, "F8_E5M2FNUZ"),
    ElementType("float8_e8m0fnu", 1, "F8_E8M0"),
    ElementType("float4_e2m1fn_x2", 1),
    ElementType("complex128", 16, "", "ComplexDoubleStorage", "c16", "dd"),
    ElementType("complex64", 8, "C64", "ComplexFloatStorage", "c8", "ff"),
    ElementType("complex32", 4),
    ElementType("int64", 8, "I64", "LongStorage", "i8", "q"),
    ElementType("int32", 4, "I32", "IntStorage", "i4", "i"),
    ElementType("int16", 2, "I16", "ShortStorage", "i2", "h"),
    ElementType("int8", 1, "I8", "CharStorage", "i1", "b"),
    ElementType("uint64", 8, "U64", "", "u8", "Q"),
    ElementType("uint32", 4, "U32", "", "u4", "I"),
    ElementType("uint16", 2, "U16", "", "u2", "H"),
    ElementType("uint8", 1, "U8", "ByteStorage", "u1", "B"),
    ElementType("bool", 1, "BOOL", "BoolStorage", "b1", "?"),
)
QUANTISED = (  # their elements are not read
    ElementType("qint8", 1, storage="QInt8Storage"),
    ElementType("qint32", 4, storage="QInt32Storage"),
    ElementType("quint8", 1, storage="QUInt8Storage"),
    ElementType("quint4x2", 1, storage="QUInt4x2Storage"),
    ElementType("quint2x4", 1, storage="QUInt2x4Storage"),
)
ITEMSIZE = {one.name: one.nbytes for one in ELEMENT_TYPES}
BY_SAFETENSORS = {one.safetensors: one.name for one in ELEMENT_TYPES if one.safetensors}
BY_NUMPY = {one.numpy: one for one in ELEMENT_TYPES if one.numpy}
BY_STORAGE = {
    **{one.storage: one.name for one in (*ELEMENT_TYPES, *QUANTISED) if one.storage},
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}


def storage_type(name: str) -> str | None:
    """The element type of a torch storage class, given its qualified name; None for other names."""
    return BY_STORAGE.get(name.rpartition(".")[2]) if name.startswith("torch.") else None


def dtype_name(name: str) -> str | None:
    """'float32' for 'torch.float32'; None for a name that is not a torch dtype."""
    short = name.removeprefix("torch.")
    return short if name == f"torch.{short}" and short in ITEMSIZE else None


class Malformed(Exception):
    """The bytes of a file contradict its format; the text says how. Callers add the path."""


def element_size(dtype: str) -> int:
    """Bytes per element, also of quantised types. Raises Malformed for unknown types."""
    size = ITEMSIZE.get(dtype) or {one.name: one.nbytes for one in QUANTISED}.get(dtype)
    if size is None:
        raise Malformed(f"a storage has the unknown type {dtype}")
    return size


@dataclass(eq=False)
class Source:
    """Bytes `start` to `start + nbytes` of a file, or `data` that were inside the pickle."""

    path: Path
    start: int
    nbytes: int
    data: bytes | None = None

    def read(self, first: int, count: int) -> bytearray:
        """`count` bytes from offset `first`; the caller has checked that they are inside the range.

        Raises CheckpointError if the file has become shorter, or cannot be read.
        """
        if self.data is not None:
            return bytearray(self.data[first : first + count])
        try:
            with open_regular(self.path) as file:
                file.seek(self.start + first)
                content = bytearray(count)
                complete = file.readinto(content) == count
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        if not complete:
            raise CheckpointError(f"{self.path}: became shorter while it was read; copy it again")
        return content


@dataclass(eq=False)
class Storage:
    """A torch storage: elements of one type in `nbytes` bytes, from offset `first` of `source`."""

    dtype: str
    nbytes: int
    source: Source
    first: int = 0


class LazyTensor:
    """Type and shape of a tensor, and where its elements are stored.

    problem: why it cannot be materialised, '' if it can.
    """

    __slots__ = ("bits", "dtype", "offset", "problem", "shape", "storage", "stride")

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        stride: tuple[int, ...] = (),
        offset: int = 0,
        storage: Storage | None = None,
        problem: str = "",
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.stride = stride  # in elements, like the offset
        self.offset = offset
        self.storage = storage
        self.problem = problem
        self.bits: frozenset[str] = (
            frozenset()
        )  # 'conj', 'neg': operations that torch applies lazily

    def __repr__(self) -> str:
        return f"LazyTensor({self.dtype}, {list(self.shape)})"

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, in the element type of the file."""
        return math.prod(self.shape) * ITEMSIZE.get(self.dtype, 1)

    def materialise(self) -> Tensor:
        """The tensor on the CPU, in newly allocated memory that is not larger than its storage.

        Raises CheckpointError if it has a problem, or the file cannot be read.
        """
        import torch

        dtype = getattr(torch, self.dtype, None)
        if self.problem or self.storage is None or not isinstance(dtype, torch.dtype):
            where = f"{self.storage.source.path}: " if self.storage else ""
            raise CheckpointError(
                f"{where}a tensor is {self.problem or f'of type {self.dtype}'}, which is not "
                "read; expected plain numbers; save the dequantised dense state dict"
            )
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        item = ITEMSIZE[self.dtype]
        count = item * (1 + _last(self.shape, self.stride))
        content = self.storage.source.read(self.storage.first + item * self.offset, count)
        flat = torch.frombuffer(content, dtype=torch.uint8)
        tensor = (flat != 0) if dtype is torch.bool else flat.view(dtype)
        tensor = tensor.as_strided(self.shape, self.stride)
        if count != self.nbytes:  # drop the bytes between the elements of a view
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        if "conj" in self.bits:
            tensor = tensor.conj().resolve_conj()
        if "neg" in self.bits:
            tensor = torch.neg(tensor)
        return tensor


def strided_view(
    storage: Storage, dtype: str, offset: object, size: object, stride: object
) -> LazyTensor:
    """A tensor of given size and stride; raises Malformed if it exceeds its storage."""
    shape, steps = checked_sizes(size), checked_sizes(stride)
    (begin,) = checked_sizes((offset,))
    if len(shape) != len(steps):
        raise Malformed(f"a tensor of {len(shape)} dimensions has {len(steps)} strides")
    count, last = _extent(shape, steps)
    tensor = LazyTensor(dtype, shape, steps, begin, storage)
    item = ITEMSIZE.get(dtype)
    if item is None:
        tensor.problem = f"of type {dtype}"
    elif count:
        if (begin + last + 1) * item > storage.nbytes:
            raise Malformed(
                f"a tensor of shape {format_shape(shape)} reaches past its storage "
                f"of {storage.nbytes} bytes"
            )
        if count * item > storage.nbytes + OVERLAP:
            raise Malformed(
                f"a tensor of shape {format_shape(shape)} repeats the {storage.nbytes} bytes of "
                "its storage"
            )
    return tensor


@lru_cache(1000)
def _extent(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, int]:
    """Number of elements, and `_last` of them; raises Malformed for an impossible shape."""
    if math.prod(max(n, 1) for n in shape) > MAX_NUMBER:
        raise Malformed(f"a tensor has the impossible shape {format_shape(shape)}")
    return math.prod(shape), _last(shape, steps)


def checked_sizes(values: object) -> tuple[int, ...]:
    """Sizes, strides or offsets from a file; raises Malformed if one is negative or too large."""
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise Malformed("a tensor has no shape, or one of too many dimensions")
    if {int}.issuperset(map(type, values)) and (
        not values or (min(values) >= 0 and max(values) < MAX_NUMBER)
    ):
        return tuple(values)
    for value in values:
        if type(value) is not int or not 0 <= value < MAX_NUMBER:
            what = "negative" if isinstance(value, int) and value < 0 else "impossible"
            raise Malformed(f"a tensor has a {what} size, stride or offset")
    return tuple(values)


def is_tensor(value: object) -> TypeGuard[Any]:
    """Whether a value is a LazyTensor or a torch.Tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return isinstance(value, LazyTensor) or (torch is not None and isinstance(value, torch.Tensor))


def format_shape(shape: tuple[int, ...]) -> str:
    """A shape for an error message."""
    return f"[{', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''}]"


def _last(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Index of the last element of a non-empty view, counted from its offset."""
    return sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


Weight = Union[LazyTensor, "Tensor"]  # in the file, or in memory
PART = re.compile(r"(.+)@([012])")  # name of one part of a tensor that a file stores in parts
# Name of a tensor that lacks leading axes of length 1, '+' each, has too many of them, '-', or is a
# matrix with rows for columns, 'T'.
AXES = re.compile(r"(.+)@(\++|-|T)")
PARTS = 3  # of such a tensor


def materialised(tensor: Weight) -> Tensor:
    """The tensor in memory; raises CheckpointError if the file cannot give it."""
    return tensor.materialise() if isinstance(tensor, LazyTensor) else tensor


class JoinedTensor(LazyTensor):
    """Several tensors, concatenated along their first axis."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Weight, ...]) -> None:
        dtype = str(parts[0].dtype).removeprefix("torch.")
        rows = sum(part.shape[0] for part in parts)
        problems = [p.problem for p in parts if isinstance(p, LazyTensor) and p.problem]
        shape = (rows, *parts[0].shape[1:])
        super().__init__(dtype, shape, problem=problems[0] if problems else "")
        self.parts = parts

    def materialise(self) -> Tensor:
        """All parts in one tensor; raises CheckpointError if the file cannot give them."""
        import torch

        return torch.cat([materialised(part) for part in self.parts])


class Reshaped(JoinedTensor):
    """A tensor with other axes of length 1."""

    __slots__ = ()

    def __init__(self, part: Weight, shape: tuple[int, ...]) -> None:
        super().__init__((part,))
        self.shape = shape

    def materialise(self) -> Tensor:
        """The tensor in memory; raises CheckpointError if the file cannot give it."""
        return super().materialise().reshape(self.shape)


class Transposed(JoinedTensor):
    """A matrix with rows for columns."""

    __slots__ = ()

    def __init__(self, part: Weight) -> None:
        super().__init__((part,))
        self.shape = self.shape[::-1]

    def materialise(self) -> Tensor:
        """The tensor in memory; raises CheckpointError if the file cannot give it."""
        return super().materialise().T.contiguous()


def _with_axes(tensor: Weight, axes: str) -> Weight:
    """The tensor with the axes that a mark asks for; unchanged if it cannot have them."""
    shape = tuple(tensor.shape)
    if axes == "T":
        return Transposed(tensor) if len(shape) == 2 else tensor
    if not shape or (axes == "-" and set(shape[:-1]) - {1}):
        return tensor
    return Reshaped(tensor, shape[-1:] if axes == "-" else (1,) * len(axes) + shape)


def join_parts(
    tensors: Mapping[str, Weight],
) -> tuple[dict[str, Weight], dict[str, tuple[str, ...]]]:
    """The tensors, with `NAME@0`, `NAME@1`, `NAME@2` joined to NAME; and each name's part names.

    `NAME@+` becomes NAME with a leading axis of length 1, `NAME@++` with two, `NAME@-` with its
    last axis alone, and `NAME@T` transposed.
    Parts are not joined if one is missing or their shapes do not fit. The joined name is then
    missing, and the code that expects it reports this.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in tensors:
        if match := PART.fullmatch(name):
            groups.setdefault(match[1], {})[int(match[2])] = name
    joined: dict[str, Weight] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for name, numbered in groups.items():
        names = tuple(numbered[i] for i in sorted(numbered))
        parts = tuple(tensors[part] for part in names)
        fits = len(parts) == PARTS and len({tuple(part.shape[1:]) for part in parts}) == 1
        if fits and all(len(part.shape) for part in parts) and name not in tensors:
            joined[name], sources[name] = JoinedTensor(parts), names
    used = {part for names in sources.values() for part in names}
    for name, tensor in tensors.items():
        if (match := AXES.fullmatch(name)) and match[1] not in tensors:
            joined[match[1]], sources[match[1]] = _with_axes(tensor, match[2]), (name,)
        elif name not in used:
            joined[name], sources[name] = tensor, (name,)
    return joined, sources
