"""Tensors that stay in their file until they are needed, and the types of their elements.

All sizes in a file are checked when a LazyTensor is created, before memory is allocated: a view
ends inside its storage, a storage inside the file, and a tensor has no more bytes than its storage
plus OVERLAP. Only `materialise` imports torch.
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

HERE = Path()  # the file that is being read; the parent process sets its path
EXPECTED = "expected a file of torch.save or safetensors"
MAX_DIMENSIONS = 64
MAX_NUMBER = 2**62  # torch's sizes are signed 64-bit numbers
OVERLAP = 2**20  # bytes by which elements that share memory (expanded views) may exceed it


class ElementType(NamedTuple):
    """One type; '' where a system has no name for it."""

    name: str  # in torch
    nbytes: int
    safetensors: str = ""
    storage: str = ""  # class of storages in torch
    numpy: str = ""  # kind and size of a dtype
    struct: str = ""  # format characters


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
QUANTISED = (  # elements of these are not read
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
    """The element type of a class of storages, by its qualified name."""
    return BY_STORAGE.get(name.rpartition(".")[2]) if name.startswith("torch.") else None


def dtype_name(name: str) -> str | None:
    """'float32' for 'torch.float32'; None for a name that is no torch dtype."""
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
        """`count` bytes from `first` on; the caller has checked that they are inside.

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
    """Consecutive elements of one type, as a torch storage: `nbytes` from `first` of a source."""

    dtype: str
    nbytes: int
    source: Source
    first: int = 0


class LazyTensor:
    """Type, shape and place of a tensor. `problem`: why it cannot be materialised, '' if it can."""

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
        self.stride = stride  # in elements, as the offset
        self.offset = offset
        self.storage = storage
        self.problem = problem
        self.bits: frozenset[str] = frozenset()  # 'conj', 'neg': signs that torch applies lazily

    def __repr__(self) -> str:
        return f"LazyTensor({self.dtype}, {list(self.shape)})"

    @property
    def nbytes(self) -> int:
        """Of the elements, as they are stored."""
        return math.prod(self.shape) * ITEMSIZE.get(self.dtype, 1)

    def materialise(self) -> Tensor:
        """The tensor, on the CPU, in new memory that is not larger than its storage.

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


def view(storage: Storage, dtype: str, offset: object, size: object, stride: object) -> LazyTensor:
    """A tensor of given size and stride in a storage; raises Malformed if it is not inside."""
    shape, steps = numbers(size), numbers(stride)
    (begin,) = numbers((offset,))
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
                f"a tensor of shape {short(shape)} reaches past its storage of {storage.nbytes} "
                "bytes"
            )
        if count * item > storage.nbytes + OVERLAP:
            raise Malformed(
                f"a tensor of shape {short(shape)} repeats the {storage.nbytes} bytes of its "
                "storage"
            )
    return tensor


@lru_cache(1000)
def _extent(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, int]:
    """Number of elements, and index of the last one from the offset; raises Malformed."""
    if math.prod(max(n, 1) for n in shape) > MAX_NUMBER:
        raise Malformed(f"a tensor has the impossible shape {short(shape)}")
    return math.prod(shape), _last(shape, steps)


def numbers(values: object) -> tuple[int, ...]:
    """Sizes, strides or offsets from a file; raises Malformed if one is negative or huge."""
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


def short(shape: tuple[int, ...]) -> str:
    """A shape for an error message."""
    return f"[{', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''}]"


def _last(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Index, from the offset, of the last element of a view of non-empty shape."""
    return sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


Weight = Union[LazyTensor, "Tensor"]  # in the file, or in memory
PART = re.compile(r"(.+)@([012])")  # name of one third of a tensor that files store in three
PARTS = 3


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


def join(tensors: Mapping[str, Weight]) -> tuple[dict[str, Weight], dict[str, tuple[str, ...]]]:
    """The tensors with all parts joined, and for each name the names of its parts.

    Parts are not joined if one is missing, or their shapes do not fit: then the joined name is
    missing, and the code that expects it reports that.
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
        if name not in used:
            joined[name], sources[name] = tensor, (name,)
    return joined, sources
