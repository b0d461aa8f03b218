"""The set-up of a fresh machine, and the contents of a built wheel."""

import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


# The documents


def test_readme_names_every_layer_and_lists_none_of_them_as_absent():
    from tinynet import nn

    text = (ROOT / "README.md").read_text()
    covered, absent = text.split("Not implemented yet", 1)
    for name in nn.__all__:
        assert f"`{name}`" in covered or not name[0].isupper(), f"README.md does not cover {name}"
        assert f"`{name}`" not in absent.split("\n\n")[0], f"README.md calls {name} absent"


def test_readme_example_runs():
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 10
    subprocess.run([sys.executable, "-c", code], check=True)


# The repository's habits


def test_checks_run_on_every_version_that_the_package_takes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    matrix = workflow["jobs"]["checks"]["strategy"]["matrix"]
    assert matrix["python"][0] == "3.10" and {"ubuntu-24.04", "ubuntu-24.04-arm"} == set(matrix["machine"])
    constraints = {*matrix["triton"], *(each["triton"] for each in matrix["include"])}
    assert constraints == {"triton-3.6", "triton-3.7", "triton-3.8", "triton-3.9"}
    for name in constraints:
        lines = (ROOT / f"constraints/{name}.txt").read_text().splitlines()
        assert f"triton=={name.removeprefix('triton-')}.*" in lines
    commands = [step.get("run") for step in workflow["jobs"]["checks"]["steps"]]
    assert commands[-1] == ".ci/run" and "make set-up" in commands[-2]
    project = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10"' in project and '"triton>=3.6,<3.10;' in project


def test_forms_of_issues_and_the_citation_are_well_formed():
    for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.stem == "config" or {"name", "description", "labels", "body"} == set(form), path.name
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_both_packages_their_types_and_the_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "tinynet/__init__.py",
        "tinynet/py.typed",
        "tinynet/data/shipped/digits.npz",
        "tinynet/data/shipped/digits.md",
        "tinynet/data/shipped/mnist5k.npz",
        "tinynet/data/shipped/mnist5k.md",
        "tinynet/benchmarks/bench_linear.py",
        "tinynet/programs/image_classifier.py",
        "tinynet_kernels/__init__.py",
        "tinynet_kernels/py.typed",
        "tinynet_engines/py.typed",
        "tinynet_engines/cpu/runtime/kernel.h",
    } <= set(names)
    roots = {name.split("/")[0] for name in names}
    assert roots == {"tinynet", "tinynet_engines", "tinynet_kernels", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    for source in [*ROOT.glob("tinynet/**/*.py"), *ROOT.glob("kernels/tinynet_*/**/*.py")]:
        path = source.relative_to(ROOT)
        assert str(path.relative_to("kernels") if path.parts[0] == "kernels" else path) in names


def test_wheel_names_its_license_and_its_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    assert f"Version: {wheel.name.split('-')[1]}\n" in text
    assert "Name: tinynet-triton\n" in text and "License-Expression: Apache-2.0\n" in text
    assert "Requires-Dist: triton<3.10,>=3.6; platform_system == 'Linux'\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_installed_wheel_loads_its_data_without_the_repository(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import tinynet, tinynet_kernels; from tinynet.data import load_images;"
        "print(tinynet.__file__, tinynet_kernels.__file__, len(load_images('mnist5k').train_labels))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    first, second, count = result.stdout.split()
    assert Path(first).is_relative_to(site) and Path(second).is_relative_to(site) and count == "4000"
    # The command line comes with it, benchmarks and all.
    command = [sys.executable, "-m", "tinynet", "bench", "--help"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.stdout.startswith("usage: tinynet bench ") and "linear" in result.stdout


# The set-up. Each test runs it on a machine that has only the commands put into a folder.

NEW_ENOUGH = 'case "$*" in *version_info*) exit 0;; esac\n'
WITH_VENV = NEW_ENOUGH + 'case "$*" in *ensurepip*) exit 0;; esac\n'


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the commands that every machine has, and no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "awk", "dirname", "df", "make", "mkdir", "touch", "cat", "chmod"):
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    return folder


def put_command(machine: Path, name: str, script: str) -> None:
    path = machine / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def set_up(machine: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `make set-up` with an environment next to the machine's commands."""
    return subprocess.run(
        ["make", "--no-print-directory", "set-up", f"VENV={machine.parent / 'venv'}", *variables],
        cwd=ROOT,
        env={"PATH": str(machine), "HOME": str(machine.parent)},
        capture_output=True,
        text=True,
    )


def assert_fails_with(result: subprocess.CompletedProcess[str], machine: Path, *parts: str) -> None:
    assert result.returncode != 0
    said = next(line for line in result.stderr.splitlines() if line.startswith("set-up: "))
    for part in parts:
        assert part in said
    assert not (machine.parent / "venv" / ".set-up").exists()


def test_set_up_without_python_says_so(machine):
    assert_fails_with(set_up(machine), machine, "Python 3.10 or newer is needed and none was found")


def test_set_up_with_only_an_old_python_says_so(machine):
    put_command(machine, "python3", 'case "$*" in *version_info*) exit 1;; esac\nexit 0\n')
    assert_fails_with(set_up(machine), machine, "Python 3.10 or newer is needed")


def test_set_up_without_the_venv_module_says_so(machine):
    put_command(machine, "python3", NEW_ENOUGH + "exit 1\n")
    assert_fails_with(set_up(machine), machine, "python3 cannot create a virtual environment", "python3-venv")


def test_set_up_without_a_compiler_says_so(machine):
    put_command(machine, "python3", WITH_VENV)
    assert_fails_with(set_up(machine), machine, "no C compiler was found", "apt install gcc")


def test_set_up_without_disk_space_says_so(machine):
    put_command(machine, "python3", WITH_VENV)
    put_command(machine, "cc", "")
    put_command(machine, "df", "echo Filesystem; echo disk 100000 99900 100 99% /\n")
    assert_fails_with(set_up(machine), machine, "of disk", "100 MiB are free")


def test_set_up_on_a_gpu_machine_without_python_headers_says_so(machine):
    put_command(machine, "python3", WITH_VENV + "exit 1\n")
    put_command(machine, "cc", "")
    put_command(machine, "nvidia-smi", "exit 0\n")
    assert_fails_with(set_up(machine), machine, "Python.h", "python3-dev")


# A python3 whose `-m venv FOLDER` creates an environment with a python that records its calls.
VENV_MAKER = (
    WITH_VENV
    + """
case "$*" in *"-m venv "*)
    mkdir -p "$3/bin"
    printf '#!/bin/sh\\necho "$@" >> "%s/calls"\\nexit %s\\n' "$3" "$PIP_EXIT" > "$3/bin/python"
    chmod +x "$3/bin/python";;
esac
"""
)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_set_up_installs_once_in_the_size_of_the_machine(machine, has_gpu):
    put_command(machine, "python3", VENV_MAKER.replace("$PIP_EXIT", "0"))
    put_command(machine, "cc", "")
    if has_gpu:
        put_command(machine, "nvidia-smi", "exit 0\n")
    result = set_up(machine)
    assert result.returncode == 0, result.stderr
    calls = (machine.parent / "venv" / "calls").read_text()
    assert ("--constraint constraints/cpu.txt" in calls) is not has_gpu and calls.endswith("-e .[dev]\n")
    started = time.perf_counter()
    assert set_up(machine).returncode == 0
    assert time.perf_counter() - started < 1
    assert (machine.parent / "venv" / "calls").read_text() == calls


@pytest.mark.parametrize("has_gpu", [False, True])
def test_set_up_takes_other_versions(machine, has_gpu):
    put_command(machine, "python3", VENV_MAKER.replace("$PIP_EXIT", "0"))
    put_command(machine, "cc", "")
    if has_gpu:
        put_command(machine, "nvidia-smi", "exit 0\n")
    assert set_up(machine, "CONSTRAINT=constraints/triton-3.6.txt").returncode == 0
    calls = (machine.parent / "venv" / "calls").read_text()
    assert calls.count("--constraint") == 1 and "--constraint constraints/triton-3.6.txt -e .[dev]\n" in calls


def test_set_up_whose_install_fails_says_so_and_is_tried_again(machine):
    put_command(machine, "python3", VENV_MAKER.replace("$PIP_EXIT", "1"))
    put_command(machine, "cc", "")
    assert_fails_with(set_up(machine), machine, "pip could not install tinynet")
    put_command(machine, "python3", VENV_MAKER.replace("$PIP_EXIT", "0"))
    assert set_up(machine).returncode == 0


def test_make_lists_its_targets():
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in result.stdout.splitlines()}
    assert {"train", "test", "lint", "bench", "bench-quick", "gpu-report", "compile-matrix"} <= listed
