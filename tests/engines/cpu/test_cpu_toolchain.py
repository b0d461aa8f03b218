"""The cache of shared objects, instruction sets and what the package reports about itself."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinynet_engines import cpu
from tinynet_engines.cpu import toolchain

ROOT = Path(__file__).resolve().parents[3]
SOURCE = "int answer(void) { return ANSWER; }"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYNET_CPU_CACHE", str(tmp_path))
    monkeypatch.delenv("TINYNET_CPU_ISA", raising=False)
    return tmp_path


def answer(path: Path) -> int:
    return ctypes.CDLL(str(path)).answer()


def test_the_second_build_is_taken_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toolchain.build(SOURCE, ("ANSWER=41",))
    monkeypatch.setattr(toolchain, "_compile", lambda *arguments: pytest.fail("compiled again"))
    assert toolchain.build(SOURCE, ("ANSWER=41",)) == path and answer(path) == 41
    assert [entry.suffix for entry in cache.iterdir()] == [".so"]


def test_a_different_source_define_flag_or_cpu_is_another_entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {toolchain.build(SOURCE, ("ANSWER=1",)), toolchain.build(SOURCE, ("ANSWER=2",))}
    paths.add(toolchain.build(SOURCE + " ", ("ANSWER=1",)))
    paths.add(toolchain.build(SOURCE, ("ANSWER=1",), fp_fusion=False))
    monkeypatch.setattr(toolchain, "cpu_features", lambda: frozenset({"other"}))
    paths.add(toolchain.build(SOURCE, ("ANSWER=1",)))
    assert len(paths) == 5


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_or_foreign_entry_is_built_again(cache: Path, damage: str) -> None:
    path = toolchain.build(SOURCE, ("ANSWER=5",))
    data = path.read_bytes()
    path.unlink()  # a new file: the old one may still be mapped
    if damage == "foreign":
        data = toolchain.build(SOURCE, ("ANSWER=6",)).read_bytes()
    path.write_bytes({"truncate": data[:-9], "flip": data[:200] + b"\0!" + data[202:], "empty": b""}.get(damage, data))
    assert answer(toolchain.build(SOURCE, ("ANSWER=5",))) == 5


def test_several_builders_at_once(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: toolchain.build(SOURCE, ("ANSWER=7",)), range(4)))
    assert len(set(paths)) == 1 and answer(paths[0]) == 7


def test_small_tiles_stay_in_registers() -> None:
    """gcc would copy a tile by memcpy, and turn 16 trips into scalar code, before it thinks of vectors."""
    compiler = toolchain.find_compiler()
    if compiler is None or compiler.is_clang or "avx2" not in toolchain.cpu_features():
        pytest.skip("of gcc's flags for processors with vectors")
    source = """void squares(const float *restrict x, float *restrict y, long n) {
        for (long k = 0; k < n; k++) {
            float tile[32] __attribute__((aligned(64)));
            for (int i = 0; i < 32; i++) tile[i] = x[32 * k + i];
            for (int i = 0; i < 32; i++) y[32 * k + i] = tile[i] * tile[i];
        }
    }"""
    command = [compiler.path, *toolchain.flags(), "-S", "-x", "c", "-", "-o", "-"]
    assembly = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    assert "mulps" in assembly and "mulss" not in assembly and "rsp" not in assembly, assembly


def test_a_rejected_program_raises(cache: Path) -> None:
    with pytest.raises(toolchain.ToolchainError, match="failed"):
        toolchain.build("this is not C")
    assert not list(cache.iterdir())


def test_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYNET_CPU_ISA", "plain")
    assert toolchain.instruction_set() == "plain"
    monkeypatch.setenv("TINYNET_CPU_ISA", "sse9")
    with pytest.raises(toolchain.ToolchainError, match="expected one of"):
        toolchain.instruction_set()


@pytest.mark.parametrize("isa", ["avx2", "plain"])
def test_kernels_on_other_instruction_sets(isa: str) -> None:
    if toolchain._ISA_FEATURES[isa] - toolchain.cpu_features():
        pytest.skip(f"this CPU has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k"]
    command += ["matmul or small_floats or overlapping or views", str(Path(__file__).with_name("test_cpu_kernels.py"))]
    environment = {"TINYNET_CPU_ISA": isa, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    environment["HOME"] = str(Path.home())
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout


def test_unavailable_without_a_compiler_or_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.unavailable_reason.cache_clear()
    monkeypatch.setattr(toolchain, "find_compiler", lambda: None)
    assert "install gcc or clang" in str(cpu.unavailable_reason())
    cpu.unavailable_reason.cache_clear()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.0.1")
    assert "3.6 to 3.9" in str(cpu.unavailable_reason())
    cpu.unavailable_reason.cache_clear()


def test_importing_changes_nothing() -> None:
    code = "import sys, tinynet_engines.cpu as cpu; assert 'triton' not in sys.modules; assert not cpu.is_active()"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_activation_is_idempotent_and_never_replaces_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends import backends
    from triton.runtime import driver

    cpu.activate()
    assert cpu.is_active() and "tinynet_cpu" in backends and "cpu" not in backends
    monkeypatch.setattr(driver, "_active", object())
    assert not cpu.is_active()
    with pytest.raises(RuntimeError, match="never replaces"):
        cpu.activate()


def test_bf16_is_multiplied_in_pairs_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    features = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma", "bmi2", "f16c", "avx512_bf16"})
    monkeypatch.delenv("TINYNET_CPU_ISA", raising=False)
    monkeypatch.setattr(toolchain, "cpu_features", lambda: features)
    for vendor, faster in (("AuthenticAMD", True), ("GenuineIntel", False)):
        monkeypatch.setattr(toolchain, "_cpu_model", lambda vendor=vendor: f"vendor_id: {vendor}")
        assert toolchain.multiplies_bf16_pairs() is faster
    monkeypatch.setenv("TINYNET_CPU_ISA", "avx2")
    assert not toolchain.multiplies_bf16_pairs()


PRODUCTS = """
import torch
from tinynet_engines.cpu import toolchain
toolchain.multiplies_bf16_pairs = lambda: {pairs}
from tinynet import functional as F
for rows, depth, columns in ((70, 64, 96), (33, 27, 40), (5, 7, 3)):
    x, w = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((rows, depth), (columns, depth)))
    y, dy = F.linear(x, w), torch.randn(rows, columns, dtype=torch.bfloat16)
    for ours, exact in zip((y, *torch.autograd.grad(y, (x, w), dy)),
                           (x.double() @ w.double().t(), dy.double() @ w.double(), dy.double().t() @ x.double())):
        torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-4)
for channels in (2, 16):  # of a group
    x = torch.randn(2, 64, 9, 9).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(64, channels, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    options = {{"padding": 1, "groups": 64 // channels}}
    y, z = F.conv2d(x, w, **options), torch.nn.functional.conv2d(x.double(), w.double(), **options)
    dy = torch.randn_like(y)
    for ours, exact in zip((y, *torch.autograd.grad(y, (x, w), dy)), (z, *torch.autograd.grad(z, (x, w), dy.double()))):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=2**-7, atol=1e-2)
"""


def test_the_other_way_to_multiply_bf16_than_this_cpu_takes() -> None:
    if "avx512_bf16" not in toolchain.cpu_features():
        pytest.skip("this CPU has one way")
    code = PRODUCTS.format(pairs=not toolchain.multiplies_bf16_pairs())
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
