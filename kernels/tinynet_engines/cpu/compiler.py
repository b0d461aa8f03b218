"""Triton's backend for CPU tensors: compiles Triton IR to C.

C text is the last stage that Triton caches. The shared object is built when a kernel is loaded, in a separate cache
whose key includes the CPU (``toolchain``). A cache directory shared by different machines is therefore safe.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from triton._C.libtriton import ir, passes  # pyright: ignore[reportMissingImports]
from triton.backends.compiler import BaseBackend, GPUTarget

from . import codegen, toolchain
from .parser import parse

TARGET = "tinynet_cpu"
HEADER = "// tinynet kernel "
MEMORY = 1 << 20  # of a program and of a thread, for kernels that count how many programs fit


@dataclass(frozen=True)
class CPUOptions:
    """The launch options that matter here. Warps and stages do not: a program runs on one thread."""

    num_warps: int = 1
    num_ctas: int = 1
    num_stages: int = 1
    warp_size: int = 1
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False
    launch_pdl: bool = False
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e5", "fp8e4nv", "fp8e5b16", "fp8e4b8")
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0
    extern_libs: Any = ()
    debug: bool = False
    backend_name: str = TARGET
    sanitize_overflow: bool = False
    arch: str | None = None
    instrumentation_mode: str = ""
    fpsan_homomorphic_casts: bool = False
    ir_override: str | None = None

    def hash(self) -> str:
        return hashlib.sha256(repr(sorted(self.__dict__.items())).encode()).hexdigest()


_IGNORED = {"num_warps", "num_stages", "num_ctas", "warp_size", "backend_name"}


class CPUBackend(BaseBackend):
    """Compiles Triton IR to C text."""

    binary_ext = "c"
    supports_native_tensor_specialization = False

    def __init__(self, target: GPUTarget):
        super().__init__(target)
        self.binary_ext = "c"

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == TARGET

    def hash(self) -> str:
        return toolchain.sources_digest()

    def get_target_name(self, options: CPUOptions) -> str:
        return TARGET

    def parse_options(self, opts: dict) -> CPUOptions:
        known = {field.name for field in fields(CPUOptions)} - _IGNORED
        return CPUOptions(**{name: value for name, value in opts.items() if name in known and value is not None})

    def pack_metadata(self, metadata: Any) -> tuple:
        return (metadata.num_warps, metadata.num_ctas, metadata.shared)

    def get_codegen_implementation(self, options: CPUOptions) -> dict:
        return {"min_dot_size": lambda left, right: (1, 1, 1)}

    def get_module_map(self) -> dict[str, ModuleType]:
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    def load_dialects(self, context: Any) -> None:
        """Loads nothing: this backend needs only Triton's own dialects."""

    # Nothing is specialized on divisibility: one compiled kernel serves aligned and misaligned arguments.
    @staticmethod
    def get_int_specialization(arg: int, **kwargs: Any) -> str:
        return ""

    @staticmethod
    def get_tensor_specialization(arg: Any, **kwargs: Any) -> str:
        return ""

    def add_stages(self, stages: dict, options: CPUOptions, language: Any = None) -> None:
        stages["ttir"] = lambda module, metadata: make_ttir(module)
        stages["c"] = lambda module, metadata: make_c(module, metadata, options)


def make_ttir(module: Any) -> Any:
    """Run Triton's target-independent passes."""
    manager = ir.pass_manager(module.context)
    passes.common.add_inliner(manager)
    if hasattr(passes.ttir, "add_rewrite_tensor_pointer"):  # block pointers, in older versions of Triton
        passes.ttir.add_rewrite_tensor_pointer(manager)
    passes.ttir.add_rewrite_tensor_descriptor_to_pointer(manager)
    passes.common.add_canonicalizer(manager)
    passes.ttir.add_combine(manager)
    passes.ttir.add_reorder_broadcast(manager)
    passes.common.add_cse(manager)
    passes.ttir.add_triton_licm(manager)
    passes.common.add_symbol_dce(manager)
    passes.ttir.add_loop_unroll(manager)
    passes.common.add_canonicalizer(manager)
    passes.common.add_cse(manager)
    try:
        manager.run(module, "make_ttir")
    except TypeError:  # Triton versions without this parameter
        manager.run(module)
    return module


def make_c(module: Any, metadata: dict, options: CPUOptions) -> str:
    """C text of a kernel, with a header line for the driver."""
    text = module.str()
    function = parse(text)
    disjoint = codegen.generate(function, assume_disjoint=True)
    careful = disjoint
    if disjoint.used_disjointness or disjoint.starts_again:
        careful = codegen.generate(parse(text), assume_disjoint=False)
    header = {
        "name": function.name,
        "fp_fusion": options.enable_fp_fusion,
        "written": disjoint.written,
        "overlap_matters": disjoint.used_disjointness,
        "data_dependent": disjoint.data_dependent,
    }
    source = "\n".join([HEADER + json.dumps(header), '#include "kernel.h"', *_functions(disjoint, careful)])
    metadata["name"] = function.name
    metadata["shared"] = MEMORY
    _dump(function.name, text, source)
    return source


def _functions(disjoint: codegen.GeneratedKernel, careful: codegen.GeneratedKernel) -> list[str]:
    """The kernel, and its careful variant if OVERLAPPING is defined; a program that may restart contains both."""
    lines = ["#ifdef OVERLAPPING", *_function(careful, "void tinynet_kernel", careful.arena_bytes), "#else"]
    arena_bytes = disjoint.arena_bytes
    if disjoint.starts_again:
        arena_bytes = max(arena_bytes, careful.arena_bytes)
        lines += _function(careful, "static __attribute__((noinline)) void careful", None)
    return [*lines, *_function(disjoint, "void tinynet_kernel", arena_bytes), "#endif", ""]


def _function(kernel: codegen.GeneratedKernel, name: str, arena_bytes: int | None) -> list[str]:
    constant = [] if arena_bytes is None else [f"const int64_t tinynet_arena_bytes = {arena_bytes};"]
    return [*constant, f"{name}(const struct program *program) {{", kernel.body, "}"]


def _dump(name: str, ttir: str, source: str) -> None:
    """Write IR and C to the folder that ``TINYNET_CPU_DUMP`` names."""
    directory = os.environ.get("TINYNET_CPU_DUMP")
    if not directory:
        return
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    stem = f"{name[:100]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (path / f"{stem}.ttir").write_text(ttir)
    (path / f"{stem}.c").write_text(source)
