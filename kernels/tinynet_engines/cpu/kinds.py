"""Kinds of the IR's operations: views, roots, and those that read or write memory."""

from __future__ import annotations

from .ir import Operation

VIEWS = {
    "tt.splat",
    "tt.make_range",
    "tt.expand_dims",
    "tt.broadcast",
    "tt.trans",
    "tt.reshape",
    "tt.join",
    "tt.split",
    "arith.constant",
}
ROOTS = {
    "tt.store",
    "tt.reduce",
    "tt.scan",
    "tt.dot",
    "tt.gather",
    "tt.cat",
    "tt.histogram",
    "tt.atomic_rmw",
    "tt.atomic_cas",
    "tt.atomic_load",
    "tt.atomic_store",
    "tt.atomic_poll",
    "tt.print",
    "tt.assert",
    "tt.unsplat",
    "tt.map_elementwise",
    "tt.return",
    "tt.reduce.return",
    "tt.scan.return",
    "tt.map_elementwise.return",
    "scf.for",
    "scf.if",
    "scf.while",
    "scf.yield",
    "scf.condition",
    "cf.br",
    "cf.cond_br",
    "ttg.barrier",
    "gpu.barrier",
    "ttg.local_barrier",
}
WRITES = {"tt.store", "tt.atomic_rmw", "tt.atomic_cas", "tt.atomic_store"}
READS = {"tt.load", "tt.atomic_rmw", "tt.atomic_cas", "tt.atomic_load", "tt.atomic_poll"}
EFFECTS = {*WRITES, "tt.atomic_poll", "tt.print", "tt.assert", "tt.call"}


def is_lazy(operation: Operation) -> bool:
    """Whether an operation is evaluated element by element inside its roots."""
    return operation.name not in ROOTS


def writes_memory(operation: Operation) -> bool:
    return any(inner.name in WRITES for inner in operation.walk())
