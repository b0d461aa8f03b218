"""Other processors and numbers of threads: a few tests in a process that hides some features of this processor.

The features are hidden from all libraries, so that PyTorch's numbers are also those of such a processor.
CONTRIBUTING.md says how to run every test like this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinynet_engines import cpu
from tinynet_engines.cpu import toolchain

TESTS = Path(__file__).parent
ROOT = TESTS.parent

AVX2 = {
    "TINYNET_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_L2_SIZE": "512",
}
PLAIN = {
    "TINYNET_CPU_ISA": "plain",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Prescott",
}
COMPILED = [
    "test_linear.py::test_fused_activation[gelu-dtype1]",
    "test_reruns.py::test_a_rerun_gives_the_same_bits[linear-float32]",
    "test_conv.py::test_dtypes_and_nchw[3x3-dtype1]",
    "test_loss.py::test_labels[17-10-mean-dtype0]",
    "test_recurrent.py::test_cells[GRUCell]",
]
INTERPRETED = [
    "test_conv.py::test_fused_pooling_is_that_of_separate_layers[16-dtype0]",
    "test_conv.py::test_fused_pooling_is_that_of_separate_layers[16-dtype1]",
    "test_sequential.py::test_a_convolution_pools_for_the_layer_after_it",
    "test_sequential.py::test_is_its_modules_one_after_another",
]


def check(engine: str, tests: list[str], threads: int, **hidden: str) -> None:
    """The tests pass on an engine in a separate process."""
    if hidden["TINYNET_CPU_ISA"] == "avx2" and "avx2" not in toolchain.cpu_features():
        pytest.skip("this processor has no AVX2")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {**hidden, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--engine", engine]
    answer = subprocess.run(
        [*command, *(str(TESTS / test) for test in tests)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(("hidden", "threads"), [(AVX2, 4), (PLAIN, 1)], ids=["avx2", "plain"])
def test_cpu_engine(hidden: dict[str, str], threads: int) -> None:
    reason = cpu.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    check("cpu", COMPILED, threads, **hidden)


@pytest.mark.parametrize(("hidden", "threads"), [(AVX2, 1), (PLAIN, 4)], ids=["avx2", "plain"])
def test_interpreter(hidden: dict[str, str], threads: int) -> None:
    pytest.importorskip("triton")
    check("interpreter", INTERPRETED, threads, **hidden)
