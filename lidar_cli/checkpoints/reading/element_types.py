"""Types of tensor elements under the names that torch, safetensors, numpy and struct give them."""

from __future__ import annotations

from typing import NamedTuple


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
