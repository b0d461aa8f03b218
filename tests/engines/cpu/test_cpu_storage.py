"""Machines where a home, a cache or a temporary folder cannot be written to or executed from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinynet_engines.cpu import storage

PROGRAM = """
import warnings

import torch

import tinynet
from tinynet import dispatch

def compute(prepare=None):
    x = torch.randn(3, 4, requires_grad=True)
    y = tinynet.functional.gelu(x)
    torch.testing.assert_close(y, torch.nn.functional.gelu(x))
    if prepare is not None:
        prepare()
    y.sum().backward()  # a kernel of its own

{body}
print(dispatch.describe("cpu"))
"""


def run(body: str, **variables: str) -> tuple[str, list[str]]:
    """The engine that the program reports, and its warnings."""
    removed = ("HOME", "XDG_CACHE_HOME", "TRITON_HOME", "TRITON_CACHE_DIR", "TINYNET_CPU_CACHE", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in removed} | variables
    environment["TINYNET_CPU_ISA"] = "plain"  # whose run-time library takes the least time to compile
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip(), [line for line in answer.stderr.splitlines() if "Warning" in line]


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A path at which nobody, not even root, can create a folder: it leads through a file."""
    (tmp_path / "file").touch()
    return str(tmp_path / "file" / "folder")


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_which_folders_are_usable(tmp_path: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.is_usable(tmp_path / "new" / "folder") and (tmp_path / "new" / "folder").is_dir()
    for folder in ("", "~/.triton/cache", nowhere, str(tmp_path / "file")):
        assert not storage.is_usable(folder)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert not storage.is_usable(tmp_path)
    assert storage.is_usable(tmp_path, execute=False)


@pytest.mark.parametrize("variables", [("HOME",), ("HOME", "TRITON_HOME"), ("TRITON_CACHE_DIR", "TINYNET_CPU_CACHE")])
def test_an_unusable_folder_is_replaced_by_a_temporary_one(
    variables: tuple[str, ...], nowhere: str, temporary: Path
) -> None:
    engine, warned = run("compute()", **dict.fromkeys(variables, nowhere), TMPDIR=str(temporary))
    assert engine.startswith("engine: Triton kernels on cpu") and not warned
    assert not any(temporary.iterdir()), "the temporary folder outlived its process"


def test_a_folder_that_fails_later_is_replaced(tmp_path: Path, temporary: Path) -> None:
    body = f"""
import pathlib
import shutil

def fail():
    for name in ("triton", "cpu"):
        folder = pathlib.Path({str(tmp_path)!r}) / name
        shutil.rmtree(folder)
        folder.touch()

compute(fail)
"""
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "TINYNET_CPU_CACHE": str(tmp_path / "cpu")}
    engine, warned = run(body, **folders, TMPDIR=str(temporary))
    assert engine.startswith("engine: Triton kernels on cpu") and not warned


def test_without_any_folder_pytorch_computes_and_one_line_says_why(nowhere: str) -> None:
    body = "from tinynet_engines.cpu import storage; storage._TEMPORARY = (); compute(); compute()"
    engine, warned = run(body, HOME=nowhere, TMPDIR=nowhere)
    assert len(warned) == 1 and "none of" in warned[0] and nowhere in warned[0]
    assert engine.startswith("engine: reference (plain PyTorch) on cpu: the CPU engine cannot build kernels")


def test_a_compiler_that_fails_is_no_traceback(tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo gcc 1.0 && exit 0\necho cannot find crti.o >&2\nexit 1\n'
    )
    compiler.chmod(0o700)
    engine, warned = run(
        "compute()", TINYNET_CPU_COMPILER=str(compiler), TINYNET_CPU_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path)
    )
    assert len(warned) == 1 and "crti.o" in warned[0] and engine.startswith("engine: reference")
