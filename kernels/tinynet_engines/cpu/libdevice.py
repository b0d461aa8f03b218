"""C text of libdevice's functions, such as ``__nv_fdiv_rz`` and ``__nv_isnand``, that have no name in C.

Source: NVIDIA, "libdevice User's Guide".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .elements import compute_type

_EXPRESSIONS = {
    "isnan": "({0} != {0})",
    "isinf": "(__builtin_fabs({0}) == (double)INFINITY)",
    "finite": "(__builtin_fabs({0}) < (double)INFINITY)",
    "isfinited": "(__builtin_fabs({0}) < (double)INFINITY)",
    "signbit": "(__builtin_signbit({0}) != 0)",
    "powi": "pow({0}, {1})",
    "ldexp": "ldexp({0}, {1})",
    "scalbn": "ldexp({0}, {1})",
    "ilogb": "ilogb({0})",
    "jn": "jn({0}, {1})",
    "yn": "yn({0}, {1})",
    "sinpi": "sin(3.14159265358979323846 * fmod({0}, 2.0))",
    "cospi": "cos(3.14159265358979323846 * fmod({0}, 2.0))",
    "rhypot": "(1 / hypot({0}, {1}))",
    "norm3d": "__builtin_sqrt((double){0} * {0} + (double){1} * {1} + (double){2} * {2})",
    "rnorm3d": "(1 / __builtin_sqrt((double){0} * {0} + (double){1} * {1} + (double){2} * {2}))",
    "normcdf": "(0.5 * erfc(-{0} * 0.70710678118654752440))",
    "fdivide": "({0} / {1})",
    "frsqrt_rn": "(1 / __builtin_sqrt((double){0}))",
    "abs": "({0} < 0 ? -{0} : {0})",
    "llabs": "({0} < 0 ? -{0} : {0})",
    "min": "({0} < {1} ? {0} : {1})",
    "max": "({0} > {1} ? {0} : {1})",
    "popc": "__builtin_popcount((uint32_t){0})",
    "popcll": "__builtin_popcountll((uint64_t){0})",
    "clz": "({0} == 0 ? 32 : __builtin_clz((uint32_t){0}))",
    "clzll": "({0} == 0 ? 64 : __builtin_clzll((uint64_t){0}))",
    "ffs": "__builtin_ffs({0})",
    "ffsll": "__builtin_ffsll({0})",
    "hadd": "(int32_t)(((int64_t){0} + {1}) >> 1)",
    "rhadd": "(int32_t)(((int64_t){0} + {1} + 1) >> 1)",
    "mul24": "(int32_t)((uint32_t)({0} << 8 >> 8) * (uint32_t)({1} << 8 >> 8))",
    "sad": "({0} > {1} ? (uint32_t){0} - (uint32_t){1} : (uint32_t){1} - (uint32_t){0}) + (uint32_t){2}",
    "mulhi": "mulhi_i32({0}, {1})",
    "mul64hi": "mulhi_i64({0}, {1})",
    "umul64hi": "(int64_t)mulhi_u64((uint64_t){0}, (uint64_t){1})",
    "umulhi": "(int32_t)mulhi_u32((uint32_t){0}, (uint32_t){1})",
    "rcbrt": "(1 / cbrt({0}))",
    "saturate": "minnum_f32(maxnum_f32({0}, 0.0f), 1.0f)",
    "float_as_int": "(int32_t)bits_from_float({0})",
    "float_as_uint": "(int32_t)bits_from_float({0})",
    "int_as_float": "float_from_bits((uint32_t){0})",
    "uint_as_float": "float_from_bits((uint32_t){0})",
    "double_as_longlong": "(int64_t)bits_from_double({0})",
    "longlong_as_double": "double_from_bits((uint64_t){0})",
    "llrint": "float_to_i64(__builtin_rint({0}))",
    "llround": "float_to_i64(round({0}))",
}


# Rounding of functions by their suffix: a parameter of the functions in directed.h
_DIRECTIONS = {"rn": "NEAREST", "rz": "TO_ZERO", "rd": "DOWN", "ru": "UP"}
_DIRECTED = re.compile(r"[fd](add|sub|mul|div|rcp|sqrt|ma)f?_(rn|rz|rd|ru)$")
_TO_INTEGER = re.compile(r"(float|double)2(u?)(int|ll)_(rn|rz|rd|ru)$")
_FROM_INTEGER = re.compile(r"(u?)(int|ll)2(float|double)_(rn|rz|rd|ru)$")
_TOWARDS = {"rn": "rint", "rz": "trunc", "rd": "floor", "ru": "ceil"}


def _directed(name: str, a: Sequence[str], target: str) -> str | None:
    """A function whose name says how it rounds: ``fdiv_rz``, ``dsqrt_ru``, ``float2int_rd``, ``ll2float_rn``."""
    if match := _DIRECTED.match(name):
        function, direction = match.groups()
        if function == "ma" and target == "f64":
            return f"__builtin_fma({', '.join(a)})" if direction == "rn" else None
        return f"directed_{function}_{target}({', '.join(a)}, {_DIRECTIONS[direction]})"
    if match := _TO_INTEGER.match(name):
        unsigned, width = match.group(2), 32 if match.group(3) == "int" else 64
        number = f"__builtin_{_TOWARDS[match.group(4)]}((double){a[0]})"
        return f"({compute_type(target)})float_to_{unsigned or 'i'}{width}({number})"
    if match := _FROM_INTEGER.match(name):
        number = f"(uint{32 if match.group(2) == 'int' else 64}_t){a[0]}" if match.group(1) else a[0]
        if match.group(4) == "rn" or (match.group(2), match.group(3)) == ("int", "double"):
            return f"({compute_type(target)}){number}"
        if match.group(2) == "int":
            return f"nearby_f32((double){number}, 0, {_DIRECTIONS[match.group(4)]})"
    return None


def names(symbol: str) -> tuple[str, str]:
    """The names by which a symbol's function may be known, with and without the suffix of its type."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    return name, name[:-1] if name[-1:] in "fd" else name


def expression(symbol: str, operands: Sequence[str], target: str) -> str | None:
    """C text of a call with a result of type ``target``; None if the function is not in this table."""
    for name in names(symbol):
        directed = _directed(name, operands, target)
        if directed is not None:
            return directed
        if name in _EXPRESSIONS:
            text = _EXPRESSIONS[name].format(*(f"({operand})" for operand in operands))
            return f"({compute_type(target)})({text})"
    return None
