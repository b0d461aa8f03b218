"""C text for one element of every elementwise operation, and the C types of elements.

:func:`element_expression` is the only entry point. A small float (bf16, fp16, fp8) is computed in fp32 and rounded
after every operation, as the IR specifies.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from .ir import Operation, UnsupportedOperation

# element -> type of variables, type in memory
_COMPUTE = {"f32": "float", "f64": "double", "i1": "_Bool", "index": "int64_t"}
_STORAGE = {"f32": "float", "f64": "double", "i1": "uint8_t", "index": "int64_t", "bf16": "uint16_t", "f16": "uint16_t"}
SMALL_FLOATS = ("bf16", "f16", "f8E5M2", "f8E4M3FN")
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
        case "f8E5M2":
            return struct.unpack("<e", (bits << 8).to_bytes(2, "little"))[0]
    raise UnsupportedOperation(None, f"has a {element} constant {text}, which the CPU engine does not support")


# ---------------------------------------------------------------------------------------------------- the table

Rule = Callable[[Operation, Sequence[str], str, str], str]
"""(operation, operand texts, element of the first operand, element of the result) -> C text"""


def _wrapping(symbol: str) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        if target == "i1":
            return f"(_Bool)((({a[0]}) {symbol} ({a[1]})) & 1)"
        unsigned = unsigned_type(target)
        return f"({compute_type(target)})(({unsigned}){a[0]} {symbol} ({unsigned}){a[1]})"

    return rule


def _float_infix(symbol: str) -> Rule:
    return lambda operation, a, source, target: rounded(target, f"({a[0]} {symbol} {a[1]})")


def _bitwise(symbol: str) -> Rule:
    return lambda operation, a, source, target: f"({compute_type(target)})({a[0]} {symbol} {a[1]})"


def _division(name: str, signed: bool) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        width = 64 if bit_width(target) == 64 else 32
        if not signed:
            a = [f"({unsigned_type(target)}){text}" for text in a]
        return f"({compute_type(target)}){name}_{'i' if signed else 'u'}{width}({a[0]}, {a[1]})"

    return rule


def _shift(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    """A shift by the width or more gives what an unbounded shift would, as on a GPU; it is undefined in C."""
    width, unsigned, kind = bit_width(target), unsigned_type(target), compute_type(target)
    amount = f"(uint32_t)({unsigned}){a[1]}"
    inside = f"({amount} < {width}u)"
    masked = f"({amount} & {max(width, 8) - 1}u)"
    match operation.name:
        case "arith.shli":
            return f"({inside} ? ({kind})(({unsigned}){a[0]} << {masked}) : ({kind})0)"
        case "arith.shrui":
            return f"({inside} ? ({kind})(({unsigned}){a[0]} >> {masked}) : ({kind})0)"
    return f"({kind})({a[0]} >> ({inside} ? {amount} : {width - 1}u))"


_INTEGER_PREDICATES = {
    "eq": "==", "ne": "!=", "slt": "<", "sle": "<=", "sgt": ">", "sge": ">=",
    "ult": "<", "ule": "<=", "ugt": ">", "uge": ">=",
}  # fmt: skip


def _compare_integers(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    predicate = predicate_of(operation)
    symbol = _INTEGER_PREDICATES[predicate]
    if source.startswith("*"):
        return f"((uintptr_t){a[0]} {symbol} (uintptr_t){a[1]})"
    if predicate[0] == "u":
        return f"(({unsigned_type(source)}){a[0]} {symbol} ({unsigned_type(source)}){a[1]})"
    if source == "i1" and predicate[0] == "s":
        return f"(-(int){a[0]} {symbol} -(int){a[1]})"
    return f"({a[0]} {symbol} {a[1]})"


_FLOAT_PREDICATES = {
    "oeq": "({0} == {1})",
    "one": "(({0} < {1}) | ({0} > {1}))",
    "olt": "({0} < {1})",
    "ole": "({0} <= {1})",
    "ogt": "({0} > {1})",
    "oge": "({0} >= {1})",
    "ueq": "(!(({0} < {1}) | ({0} > {1})))",
    "une": "({0} != {1})",
    "ult": "(!({0} >= {1}))",
    "ule": "(!({0} > {1}))",
    "ugt": "(!({0} <= {1}))",
    "uge": "(!({0} < {1}))",
    "ord": "(({0} == {0}) & ({1} == {1}))",
    "uno": "(({0} != {0}) | ({1} != {1}))",
    "true": "1",
    "false": "0",
}


def predicate_of(operation: Operation) -> str:
    return operation.head.split(",")[0].split()[0]


def _compare_floats(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    return _FLOAT_PREDICATES[predicate_of(operation)].format(*a)


def _minmax(name: str) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        return f"{name}_{'f64' if target == 'f64' else 'f32'}({a[0]}, {a[1]})"

    return rule


def _integer_minmax(symbol: str, signed: bool) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        cast = "" if signed else f"({unsigned_type(target)})"
        return f"({cast}{a[0]} {symbol} {cast}{a[1]} ? {a[0]} : {a[1]})"

    return rule


def _convert(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    kind = compute_type(target)
    match operation.name:
        case "arith.extsi":
            return f"({kind})-(int){a[0]}" if source == "i1" else f"({kind}){a[0]}"
        case "arith.extui" | "arith.index_castui":
            return f"({kind})({unsigned_type(source)}){a[0]}"
        case "arith.trunci":
            return f"(_Bool)({a[0]} & 1)" if target == "i1" else f"({kind}){a[0]}"
        case "arith.sitofp":
            text = f"-(int){a[0]}" if source == "i1" else a[0]
            return rounded(target, f"({kind}){text}")
        case "arith.uitofp":
            return rounded(target, f"({kind})({unsigned_type(source)}){a[0]}")
        case "arith.fptosi":
            width = 64 if bit_width(target) == 64 or source == "f64" else 32
            return f"({kind})float_to_i{width}({a[0]})"
        case "arith.fptoui":
            return f"({kind})float_to_u{64 if bit_width(target) == 64 else 32}({a[0]})"
        case "arith.extf" | "arith.truncf" | "tt.fp_to_fp":
            if str(operation.attributes.get("rounding", "rtne")) != "rtne":
                raise UnsupportedOperation(operation, "with a rounding mode other than nearest even is not supported")
            return rounded(target, f"({kind}){a[0]}")
    return f"({kind}){a[0]}"


def _bitcast(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    if source.startswith("*") or target.startswith("*") or source[0] == target[0] == "i":
        return f"({compute_type(target)})({a[0]})"
    if source == target:
        return a[0]
    bits = {"f32": f"bits_from_float({a[0]})", "f64": f"bits_from_double({a[0]})"}.get(source)
    if bits is None:
        bits = to_memory(source, a[0]) if source in SMALL_FLOATS else f"({unsigned_type(source)}){a[0]}"
    if target == "f32":
        return f"float_from_bits((uint32_t){bits})"
    if target == "f64":
        return f"double_from_bits((uint64_t){bits})"
    if target in SMALL_FLOATS:
        return from_memory(target, f"({storage_type(target)}){bits}")
    return f"({compute_type(target)}){bits}"


# name -> function for fp32, function for fp64
_FUNCTIONS = {
    "exp": ("tn_expf", "exp"),
    "exp2": ("tn_exp2f", "exp2"),
    "log": ("tn_logf", "log"),
    "log2": ("tn_log2f", "log2"),
    "tanh": ("tn_tanhf", "tanh"),
    "erf": ("tn_erff", "erf"),
    "rsqrt": ("tn_rsqrtf", "tn_rsqrt"),
    "sqrt": ("__builtin_sqrtf", "__builtin_sqrt"),
    "absf": ("__builtin_fabsf", "__builtin_fabs"),
    "floor": ("__builtin_floorf", "__builtin_floor"),
    "ceil": ("__builtin_ceilf", "__builtin_ceil"),
    "trunc": ("__builtin_truncf", "__builtin_trunc"),
    "rint": ("__builtin_rintf", "__builtin_rint"),
    "roundeven": ("__builtin_rintf", "__builtin_rint"),
    "nearbyint": ("__builtin_rintf", "__builtin_rint"),
    "copysign": ("__builtin_copysignf", "__builtin_copysign"),
    "fabs": ("__builtin_fabsf", "__builtin_fabs"),
    "fma": ("__builtin_fmaf", "__builtin_fma"),
    "fmax": ("maxnum_f32", "maxnum_f64"),
    "fmin": ("minnum_f32", "minnum_f64"),
}
_LIBRARY_FUNCTIONS = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "erfc", "exp10", "expm1", "fdim",
    "fmod", "hypot", "lgamma", "log10", "log1p", "logb", "nextafter", "pow", "remainder", "round", "sin", "sinh", "tan",
    "tgamma", "j0", "j1", "y0", "y1",
}  # fmt: skip
_LIBDEVICE_EXPRESSIONS = {
    "isnan": "({0} != {0})",
    "isinf": "(__builtin_fabs({0}) == (double)INFINITY)",
    "finite": "(__builtin_fabs({0}) < (double)INFINITY)",
    "isfinited": "(__builtin_fabs({0}) < (double)INFINITY)",
    "signbit": "(__builtin_signbit({0}) != 0)",
    "powi": "pow({0}, {1})",
    "ldexp": "ldexp({0}, {1})",
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
    "mulhi": "mulhi_i32({0}, {1})",
    "umulhi": "(int32_t)mulhi_u32((uint32_t){0}, (uint32_t){1})",
    "div_rn": "({0} / {1})",
    "rcp_rn": "(1 / {0})",
    "rcbrt": "(1 / cbrt({0}))",
    "saturate": "minnum_f32(maxnum_f32({0}, 0.0f), 1.0f)",
    "float_as_int": "(int32_t)bits_from_float({0})",
    "int_as_float": "float_from_bits((uint32_t){0})",
    "llrint": "float_to_i64(__builtin_rint({0}))",
    "llround": "float_to_i64(round({0}))",
    "add_rn": "({0} + {1})",
    "sub_rn": "({0} - {1})",
    "mul_rn": "({0} * {1})",
    "sqrt_rn": "__builtin_sqrt({0})",
}


def _function(name: str) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        pair = _FUNCTIONS.get(name) or (f"{name}f", name)
        return rounded(target, f"{pair[target == 'f64']}({', '.join(a)})")

    return rule


def _external(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    """libdevice's functions: ``__nv_tanhf``, ``__nv_fast_expf``, ``__nv_isnand``, ..."""
    symbol = str(operation.attributes.get("symbol", ""))
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for candidate in (name, name[:-1] if name[-1:] in "fd" else name):
        if candidate in _LIBDEVICE_EXPRESSIONS:
            text = _LIBDEVICE_EXPRESSIONS[candidate].format(*(f"({text})" for text in a))
            return f"({compute_type(target)})({text})"
        if candidate in _FUNCTIONS or candidate in _LIBRARY_FUNCTIONS:
            return _function(candidate)(operation, a, source, target)
    raise UnsupportedOperation(operation, f"calls {symbol!r}, which the CPU engine does not support")


def _multiply_high(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    width = bit_width(target)
    return f"({compute_type(target)})mulhi_u{width}((uint{width}_t){a[0]}, (uint{width}_t){a[1]})"


def _clamp(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    suffix = "f64" if target == "f64" else "f32"
    kind = "imum" if operation.attributes.get("propagateNan") == "all" else "num"
    return f"min{kind}_{suffix}(max{kind}_{suffix}({a[0]}, {a[1]}), {a[2]})"


_RULES: dict[str, Rule] = {
    "arith.addi": _wrapping("+"),
    "arith.subi": _wrapping("-"),
    "arith.muli": _wrapping("*"),
    "arith.addf": _float_infix("+"),
    "arith.subf": _float_infix("-"),
    "arith.mulf": _float_infix("*"),
    "arith.divf": _float_infix("/"),
    "arith.remf": _function("fmod"),
    "arith.negf": lambda operation, a, source, target: f"(-{a[0]})",
    "arith.andi": _bitwise("&"),
    "arith.ori": _bitwise("|"),
    "arith.xori": _bitwise("^"),
    "arith.shli": _shift,
    "arith.shrsi": _shift,
    "arith.shrui": _shift,
    "arith.divsi": _division("divide", True),
    "arith.divui": _division("divide", False),
    "arith.remsi": _division("remainder", True),
    "arith.remui": _division("remainder", False),
    "arith.cmpi": _compare_integers,
    "arith.cmpf": _compare_floats,
    "arith.select": lambda operation, a, source, target: f"({a[0]} ? {a[1]} : {a[2]})",
    "arith.maxnumf": _minmax("maxnum"),
    "arith.minnumf": _minmax("minnum"),
    "arith.maximumf": _minmax("maximum"),
    "arith.minimumf": _minmax("minimum"),
    "arith.maxsi": _integer_minmax(">", True),
    "arith.minsi": _integer_minmax("<", True),
    "arith.maxui": _integer_minmax(">", False),
    "arith.minui": _integer_minmax("<", False),
    "arith.bitcast": _bitcast,
    "tt.bitcast": _bitcast,
    "math.fma": lambda operation, a, source, target: rounded(target, f"({a[0]} * {a[1]} + {a[2]})"),
    "math.absi": lambda operation, a, source, target: f"({compute_type(target)})({a[0]} < 0 ? -{a[0]} : {a[0]})",
    "math.ctpop": lambda operation, a, source, target: (
        f"({compute_type(target)})__builtin_popcountll(({unsigned_type(source)}){a[0]})"
    ),
    "tt.addptr": lambda operation, a, source, target: f"({a[0]} + (int64_t){a[1]})",
    "tt.ptr_to_int": lambda operation, a, source, target: f"(int64_t){a[0]}",
    "tt.int_to_ptr": lambda operation, a, source, target: f"({compute_type(target)}){a[0]}",
    "tt.precise_sqrt": _function("sqrt"),
    "tt.precise_divf": _float_infix("/"),
    "tt.clampf": _clamp,
    "tt.mulhiui": _multiply_high,
    "tt.extern_elementwise": _external,
}
for _name in (
    "arith.extsi", "arith.extui", "arith.trunci", "arith.sitofp", "arith.uitofp", "arith.fptosi", "arith.fptoui",
    "arith.extf", "arith.truncf", "arith.index_cast", "arith.index_castui", "tt.fp_to_fp",
):  # fmt: skip
    _RULES[_name] = _convert
for _name in (*_FUNCTIONS, *_LIBRARY_FUNCTIONS):
    _RULES.setdefault(f"math.{_name}", _function(_name))


def element_expression(operation: Operation, operands: Sequence[str]) -> str:
    """C text for one element of an operation's result.

    Args:
        operation: an elementwise operation.
        operands: C text of one element of each operand, free of side effects.

    Raises:
        UnsupportedOperation: the table has no rule for it.
    """
    rule = _RULES.get(operation.name)
    if rule is None:
        raise UnsupportedOperation(operation)
    source = operation.operands[0].type.element if operation.operands else ""
    return rule(operation, operands, source, operation.result.type.element)
