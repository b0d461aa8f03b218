"""`tinynet env`: versions, devices, the engine and why, and caches: what a bug report needs."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tinynet
from tinynet.cli import caches

# Packages that some features need.
OPTIONAL = ("matplotlib", "numpy", "onnx", "onnxscript", "pillow", "safetensors", "tensorboard", "torchvision")
# Prefixes of the environment variables that change what runs.
VARIABLES = ("TINYNET_", "TRITON_", "OMP_", "MKL_", "ONEDNN_", "ATEN_", "CUDA_VISIBLE", "HIP_VISIBLE", "ROCR_VISIBLE")


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "env", help="print versions, devices, the engine and why, and the caches and their sizes"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    for name, lines in _sections():
        for index, line in enumerate(lines):
            print(f"{name if index == 0 else '':10}{line}")
    return 0


def _sections() -> Iterator[tuple[str, list[str]]]:
    """Yields the names and lines of the output."""
    import torch

    yield "tinynet", [f"{tinynet.__version__} in {Path(tinynet.__file__).parent}"]
    yield "python", [f"{platform.python_version()} on {platform.platform()}"]
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield "torch", [f"{torch.__version__} for {built_for if torch.version.cuda or torch.version.hip else 'CPUs'}"]
    yield "triton", [_version("triton") or "not installed"]
    yield "others", [", ".join(f"{name} {_version(name) or '(not installed)'}" for name in OPTIONAL)]
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    yield "devices", [f"{name}: {_described(name)}" for name in devices]
    yield "engine", [tinynet.describe(name).removeprefix("engine: ") for name in devices]
    yield "compiler", [_compiler()]
    yield "caches", [f"{cache.name}: {caches.shown(cache.size())} in {cache.folder}" for cache in _caches()]
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    yield "variables", variables or ["none that matter are set"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _described(device: str) -> str:
    """The name and size of a device."""
    import torch

    if device == "cpu":
        model = _field_of_cpuinfo("model name") or platform.processor() or platform.machine()
        return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in PyTorch"
    found = torch.cuda.get_device_properties(device)
    size = f"{found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
    return f"{found.name}, {size}, {getattr(found, 'gcnArchName', None) or f'sm_{found.major}{found.minor}'}"


def _field_of_cpuinfo(name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _compiler() -> str:
    from tinynet_engines.cpu.toolchain import ToolchainError, find_compiler, instruction_set

    compiler = find_compiler()
    if compiler is None:
        return "no C compiler found, which the CPU engine needs: install gcc or clang"
    try:
        return f"{compiler.version} in {compiler.path}, for {instruction_set()}"
    except ToolchainError as error:
        return f"{compiler.version} in {compiler.path}; {error}"


def _caches() -> Iterator[caches.Cache]:
    yield caches.compiled_by_cpu_engine()
    if _version("triton"):
        yield caches.compiled_by_triton()
    yield caches.downloads()
