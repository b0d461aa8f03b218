"""C text for one element of every elementwise operation.

:func:`element_expression` is the only entry point. A small float (bf16, fp16, fp8) is computed in fp32 and rounded
after every operation, as the IR specifies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import libdevice
from .elements import (
    SMALL_FLOATS,
    bit_width,
    compute_type,
    from_memory,
    rounded,
    storage_type,
    to_memory,
    unsigned_type,
)
from .ir import Operation, UnsupportedOperation

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


_TRUNCATED = ("bf16", "f16", "f8E5M2")


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
            rounding = str(operation.attributes.get("rounding", "rtne"))
            if rounding == "rtz" and target in _TRUNCATED and source == "f32":
                return f"truncated_{target}({a[0]})"
            if rounding != "rtne":
                raise UnsupportedOperation(operation, f"from {source} to {target} cannot round by {rounding}")
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


def _function(name: str) -> Rule:
    def rule(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
        pair = _FUNCTIONS.get(name) or (f"{name}f", name)
        return rounded(target, f"{pair[target == 'f64']}({', '.join(a)})")

    return rule


def _external(operation: Operation, a: Sequence[str], source: str, target: str) -> str:
    symbol = str(operation.attributes.get("symbol", ""))
    text = libdevice.expression(symbol, a, target)
    if text is not None:
        return text
    for name in libdevice.names(symbol):
        if name in _FUNCTIONS or name in _LIBRARY_FUNCTIONS:
            return _function(name)(operation, a, source, target)
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
    "tinynet.low_e2m1": lambda operation, a, source, target: f"load_f4E2M1((uint8_t){a[0]} & 15)",
    "tinynet.high_e2m1": lambda operation, a, source, target: f"load_f4E2M1((uint8_t){a[0]} >> 4)",
    "tinynet.e8m0": lambda operation, a, source, target: f"load_f8E8M0((uint8_t){a[0]})",
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
