"""Several threads at once: the first use of an engine, the first launch of a kernel, and every later one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernels

PROGRAM = """
import sys
import threading
import traceback

import torch

import tinynet
from tinynet import functional as F, optim

device = sys.argv[1]
sys.setswitchinterval(1e-5)


def leaf(*shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return values.to(device).requires_grad_()


def gradients(function, *leaves):
    y = function(*leaves)
    y.sum().backward()
    return [y.detach(), *[x.grad for x in leaves]]


def linear():
    return gradients(lambda x, w: F.linear(x, w, activation="gelu"), leaf(3, 7), leaf(5, 7))


def pool():
    return gradients(lambda x: F.max_pool2d(x, 2), leaf(1, 2, 6, 6))


def loss():
    return gradients(lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2], device=device)), leaf(3, 4))


def step():
    parameter = leaf(5)
    parameter.grad = leaf(5).detach()
    optim.AdamW([parameter]).step()
    return [parameter.detach()]


functions = [linear, pool, loss, step, linear, pool, loss, step]
with tinynet.engine("reference"):
    expected = {function: function() for function in functions}
start, failures = threading.Barrier(len(functions)), []


def work(function):
    start.wait()
    try:
        with tinynet.engine("kernels"):
            for _ in range(3):
                for actual, wanted in zip(function(), expected[function], strict=True):
                    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    except BaseException:
        failures.append(traceback.format_exc())


threads = [threading.Thread(target=work, args=(function,)) for function in functions]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("".join(failures) or None)
"""


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_threads_start_together(cache: str, device: str, tmp_path: Path) -> None:
    if cache == "cold" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has no cache")
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "TINYNET_CPU_CACHE": str(tmp_path / "cpu")}
    environment = os.environ | (folders if cache == "cold" else {})
    answer = subprocess.run([sys.executable, "-c", PROGRAM, device], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
