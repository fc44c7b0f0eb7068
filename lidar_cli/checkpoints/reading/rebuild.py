"""Builds containers, tensors and numbers from the names and arguments in a pickle.

For a tensor or an array, torch and numpy pickle the name of a function that rebuilds it and its
arguments. HANDLERS maps each such name to a function here, which returns a plain value or a
LazyTensor. All other names become a StandIn.
Sources: torch/_utils.py, torch/_tensor.py (the functions named, torch 2.15), numpy's
ndarray.__reduce__ and dtype.__reduce__ (numpy 1.x and 2.x).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import (
    BY_NUMPY,
    LazyTensor,
    Malformed,
    Source,
    Storage,
    checked_sizes,
    dtype_name,
    storage_type,
    strided_view,
)
from lidar_cli.checkpoints.reading.stand_ins import ArrayType, Global, StandIn

Arguments = tuple[Any, ...]

IN_MEMORY = Path("(in the pickle)")


def _tensor(args: Arguments) -> LazyTensor:
    storage, offset, size, stride = args[:4]
    return strided_view(_storage(storage), storage.dtype, offset, size, stride)


def _tensor_v3(args: Arguments) -> LazyTensor:
    storage, offset, size, stride, _, _, dtype = args[:7]
    named = dtype_name(dtype.name) if isinstance(dtype, Global) else None
    tensor = strided_view(_storage(storage), named or str(dtype)[:60], offset, size, stride)
    return _with_bits(tensor, args[7:])


def _storage(value: object) -> Storage:
    if not isinstance(value, Storage):
        raise Malformed("a tensor has no storage")
    return value


def _with_bits(tensor: LazyTensor, metadata: Arguments) -> LazyTensor:
    if metadata and isinstance(metadata[0], dict):
        tensor.bits = frozenset(bit for bit in ("conj", "neg") if metadata[0].get(bit))
    return tensor


def _quantised(args: Arguments) -> LazyTensor:
    return LazyTensor(_storage(args[0]).dtype, checked_sizes(args[2]), problem="quantised")


def _sparse(args: Arguments) -> LazyTensor:
    data = args[1]  # begins with indices and values in every layout
    sizes = [part for part in data[2:] if isinstance(part, tuple)]
    values = next(part for part in reversed(data) if isinstance(part, LazyTensor))
    return LazyTensor(values.dtype, checked_sizes(sizes[0]), problem="sparse")


def _without_data(dtype: object, size: object) -> LazyTensor:
    named = dtype_name(dtype.name) if isinstance(dtype, Global) else None
    return LazyTensor(named or "unknown", checked_sizes(size), problem="without data")


def _from_type(args: Arguments) -> Any:
    """The tensor in an instance of a subclass of Tensor, without the subclass."""
    function, inner = args[0], args[2]
    if isinstance(function, Global) and isinstance(inner, tuple) and function.name in TENSORS:
        return TENSORS[function.name](inner)
    return StandIn(function.name if isinstance(function, Global) else "a subclass of Tensor", args)


def _mapping(args: Arguments) -> dict[Any, Any]:
    if not args:
        return {}
    pairs = args[0].items() if isinstance(args[0], dict) else _sequence(args[0])
    return dict(pairs)


def _list(args: Arguments) -> list[Any]:
    return list(_sequence(args[0])) if args else []


def _sequence(value: object) -> Any:
    if not isinstance(value, list | tuple | set | frozenset):
        raise Malformed("a container is made from a value that is none")
    return value


def _encode(args: Arguments) -> Any:
    """Bytes, which protocol 2 pickles as text with an encoding."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        return StandIn("_codecs.encode", args)
    return args[0].encode("latin-1")


def _bytes_of_call(args: Arguments) -> bytes:
    """What bytes(*args) returns; protocol 2 pickles b'' as a call without arguments."""
    return _bytes(args[0]) or b"" if args else b""


def _device(args: Arguments) -> str:
    return ":".join(str(part) for part in args if isinstance(part, str | int))[:100]


def _numpy_type(args: Arguments) -> ArrayType:
    if not isinstance(args[0], str) or len(args[0]) > 100:
        raise Malformed("a numpy type has no name")
    return ArrayType(args[0])


def _numpy_scalar(args: Arguments) -> Any:
    """A Python number, text or bytes; a StandIn for other types, such as dates."""
    kind, data = args[0], _bytes(args[1]) if len(args) > 1 else b""
    if not isinstance(kind, ArrayType) or data is None:
        return StandIn("numpy.generic", args)
    if kind.code in BY_NUMPY:
        values = struct.unpack(kind.order + BY_NUMPY[kind.code].struct, data)
        return complex(*values) if len(values) == 2 else values[0]
    if kind.code.startswith("U"):
        return data.decode("utf-32-be" if kind.order == ">" else "utf-32-le").rstrip("\0")
    return data.rstrip(b"\0") if kind.code.startswith("S") else StandIn("numpy.generic", args)


def _numpy_array(args: Arguments) -> LazyTensor:
    """An empty array; `fill_array` fills it with the state that follows in the pickle."""
    return LazyTensor("uint8", (0,), (1,), storage=_in_memory(b"", "uint8"))


def _numpy_buffer(args: Arguments) -> LazyTensor:
    data, kind, shape, order = args
    array = _numpy_array(())
    fill_array(array, (1, shape, kind, order == "F", data))
    return array


def is_unfilled(tensor: LazyTensor) -> bool:
    """Whether a tensor is an empty array that `fill_array` can fill."""
    return tensor.storage is not None and tensor.storage.source.data == b""


def fill_array(array: LazyTensor, state: object) -> None:
    """Fill an array with the state of numpy's ndarray.__reduce__; raises Malformed."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise Malformed("a numpy array has no state")
    size, kind, fortran, content = state[-4:]
    shape = checked_sizes(size)
    data = _bytes(content)
    element = BY_NUMPY.get(kind.code) if isinstance(kind, ArrayType) else None
    if element is None or data is None:
        array.shape, array.dtype, array.problem = shape, "unknown", "an array of objects"
        return
    steps = [1] * len(shape)
    order = range(1, len(shape)) if fortran else range(len(shape) - 2, -1, -1)
    for i in order:
        steps[i] = steps[i - 1] * shape[i - 1] if fortran else steps[i + 1] * shape[i + 1]
    if math.prod(shape) * element.nbytes != len(data):
        raise Malformed("a numpy array does not have the size of its shape")
    array.dtype, array.shape, array.stride = element.name, shape, tuple(steps)
    array.storage, array.offset = _in_memory(data, element.name), 0
    if kind.order == ">" and element.nbytes > 1:
        array.problem = "of big-endian numbers"


def _in_memory(data: bytes, dtype: str) -> Storage:
    return Storage(dtype, len(data), Source(IN_MEMORY, 0, len(data), data))


def _bytes(value: object) -> bytes | None:
    """The value as bytes, also if Python 2 pickled them as text; None for other types."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | str):
        return value.encode("latin-1") if isinstance(value, str) else bytes(value)
    return None


Handler = Callable[[Arguments], Any]

TENSORS: dict[str, Handler] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": lambda args: _with_bits(_tensor(args), args[6:]),
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda args: args[0],
    "torch._utils._rebuild_parameter_with_state": lambda args: args[0],
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda args: _without_data(args[0], args[1]),
    "torch._utils._rebuild_wrapper_subclass": lambda args: _without_data(args[1], args[2]),
}
HANDLERS: dict[str, Handler] = {
    **TENSORS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch.Size": lambda args: tuple(_list(args)),
    "torch.device": _device,
    "torch.serialization._get_layout": lambda args: (
        str(args[0])[:100] if isinstance(args[0], str) else "unknown"
    ),
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda args: _mapping(args[1:]),
    "collections.deque": _list,
    "builtins.dict": _mapping,
    "builtins.list": _list,
    "builtins.tuple": lambda args: tuple(_list(args)),
    "builtins.set": lambda args: set(_list(args)),
    "builtins.frozenset": lambda args: frozenset(_list(args)),
    "builtins.complex": lambda args: complex(*map(float, args)),
    "builtins.bytes": _bytes_of_call,
    "builtins.bytearray": lambda args: bytearray(_bytes_of_call(args)),
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_type,
    **{
        f"numpy.{core}.{name}": handler
        for core in ("core", "_core")
        for name, handler in (
            ("multiarray.scalar", _numpy_scalar),
            ("multiarray._reconstruct", _numpy_array),
            ("numeric._frombuffer", _numpy_buffer),
        )
    },
}
# Names that become no StandIn, in addition to those of HANDLERS, element types and storages.
PLAIN = frozenset((
    "argparse.Namespace", "types.SimpleNamespace", "numpy.ndarray", "torch.Tensor",
    "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "builtins.int", "builtins.float", "builtins.bool", "builtins.str",
    "builtins.object", "copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__",
))  # fmt: skip


def becomes_stand_in(name: str) -> bool:
    """Whether an object with this qualified name is represented by a StandIn."""
    return not (name in HANDLERS or name in PLAIN or dtype_name(name) or storage_type(name))
