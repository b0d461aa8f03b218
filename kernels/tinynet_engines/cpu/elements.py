"""C types of elements and C text of constants. A small float (bf16, fp16, fp8) is held in an fp32 variable."""

from __future__ import annotations

import math
import struct

from .ir import UnsupportedOperation

# element -> type of variables, type in memory
_COMPUTE = {"f32": "float", "f64": "double", "i1": "_Bool", "index": "int64_t"}
_STORAGE = {"f32": "float", "f64": "double", "i1": "uint8_t", "index": "int64_t", "bf16": "uint16_t", "f16": "uint16_t"}
# fp8 element -> bits of the fraction, bias of the exponent; those with NUZ have no negative zero, infinity or other NaN
_FP8 = {"f8E5M2": (2, 15), "f8E4M3FN": (3, 7), "f8E5M2FNUZ": (2, 16), "f8E4M3FNUZ": (3, 8)}
HALVES = ("bf16", "f16")
# enum element_kind of services.h
ELEMENT_KINDS = {"f32": "ELEMENT_F32", "bf16": "ELEMENT_BF16", "f16": "ELEMENT_F16"}
SMALL_FLOATS = (*HALVES, *_FP8)
_BYTES = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2, "index": 8, "i1": 1}


def bit_width(element: str) -> int:
    return 64 if element == "index" else int(element[1:])


def compute_type(element: str) -> str:
    """C type of a variable that holds one element."""
    if element.startswith("*"):
        return storage_type(element[1:]) + " *"
    if element in SMALL_FLOATS:
        return "float"
    if element in _COMPUTE:
        return _COMPUTE[element]
    if element in ("i8", "i16", "i32", "i64"):
        return f"int{element[1:]}_t"
    raise UnsupportedOperation(None, f"uses the type {element}, which the CPU engine does not support")


def storage_type(element: str) -> str:
    """C type of one element in memory."""
    if element.startswith("*"):
        return storage_type(element[1:]) + " *"
    if element in _STORAGE:
        return _STORAGE[element]
    return "uint8_t" if element in SMALL_FLOATS else compute_type(element)


def element_bytes(element: str) -> int:
    if element.startswith("*"):
        return 8
    return _BYTES.get(element) or (1 if element in SMALL_FLOATS else bit_width(element) // 8)


def unsigned_type(element: str) -> str:
    return "uint8_t" if element == "i1" else f"uint{bit_width(element)}_t"


def from_memory(element: str, text: str) -> str:
    return f"load_{element}({text})" if element in SMALL_FLOATS else text


def to_memory(element: str, text: str) -> str:
    return f"store_{element}({text})" if element in SMALL_FLOATS else text


def rounded(element: str, text: str) -> str:
    return f"round_{element}({text})" if element in SMALL_FLOATS else text


def literal(text: str, element: str) -> str:
    """C constant for the value of an ``arith.constant``."""
    if element == "f64" or element in ("f32", *SMALL_FLOATS):
        value = _float_value(text, element)
        if value != value:
            return "NAN"
        if value in (float("inf"), float("-inf")):
            return "INFINITY" if value > 0 else "(-INFINITY)"
        return f"({value!r})" if element == "f64" else f"({value!r}f)"
    if text in ("true", "false"):
        return "1" if text == "true" else "0"
    value = int(text, 0)
    if element == "i64" or element == "index":
        return f"INT64_C({value})" if value > -(2**63) else "INT64_MIN"
    return f"({value})" if value > -(2**31) else "INT32_MIN"


def _float_value(text: str, element: str) -> float:
    if not text.startswith("0x"):
        value = float(text)
        return struct.unpack("<f", struct.pack("<f", value))[0] if element == "f32" else value
    bits = int(text, 16)
    match element:
        case "f64":
            return struct.unpack("<d", bits.to_bytes(8, "little"))[0]
        case "f32":
            return struct.unpack("<f", bits.to_bytes(4, "little"))[0]
        case "bf16":
            return struct.unpack("<f", (bits << 16).to_bytes(4, "little"))[0]
        case "f16":
            return struct.unpack("<e", bits.to_bytes(2, "little"))[0]
    if element in _FP8:
        return _fp8_value(bits, element)
    raise UnsupportedOperation(None, f"has a {element} constant {text}, which the CPU engine does not support")


def _fp8_value(bits: int, element: str) -> float:
    fraction_bits, bias = _FP8[element]
    magnitude, sign = bits & 0x7F, -1 if bits & 0x80 else 1
    largest = {"f8E5M2": 0x7C, "f8E4M3FN": 0x7E}.get(element, 0x7F)
    if magnitude > largest or (largest == 0x7F and bits == 0x80):
        return math.nan
    if element == "f8E5M2" and magnitude == 0x7C:
        return sign * math.inf
    exponent, fraction = magnitude >> fraction_bits, magnitude & ((1 << fraction_bits) - 1)
    whole = fraction + ((1 << fraction_bits) if exponent else 0)
    return sign * math.ldexp(whole, max(exponent, 1) - bias - fraction_bits)
