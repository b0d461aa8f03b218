"""Programs with failing standard streams: nobody reads, the device is full, the encoding lacks a character."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinynet import streams

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAM = """
import sys
import start_up
for number in range(20000):
    print("line", number, "“quoted”", flush=number % 7 == 0)
print("said", file=sys.stderr)
with open("result", "w") as file:
    file.write(f"{file.fileno()} {sys.stdin.fileno()}{sys.stdout.fileno()}{sys.stderr.fileno()}")
"""


def shell(folder: Path, line: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which PROGRAM stands for the program above."""
    (folder / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": path, **changes}
    command = ["bash", "-c", line.replace("PROGRAM", '"$PYTHON" program.py')]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("PROGRAM > out; echo $?", "0"),
        ("PROGRAM | head -1; echo ${PIPESTATUS[0]}", "line 0 “quoted”\n0"),
        ("PROGRAM > /dev/full; echo $?", "0"),
        ("PROGRAM >&-; echo $?", "0"),
        ("PROGRAM >&- 2>&-; echo $?", "0"),
        ("PROGRAM <&- >&- 2>&-; echo $?", "0"),
        ("PROGRAM > out 2> /dev/full; echo $?", "0"),
        ("PROGRAM 2>&1 | head -0; echo ${PIPESTATUS[0]}", "0"),
        ("PYTHONUNBUFFERED=1 PROGRAM | head -1; echo ${PIPESTATUS[0]}", "line 0 “quoted”\n0"),
        ("PYTHONIOENCODING=ascii PROGRAM | head -1; echo ${PIPESTATUS[0]}", r"line 0 \u201cquoted\u201d" "\n0"),
        (
            "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 PROGRAM | head -1; echo ${PIPESTATUS[0]}",
            r"line 0 \u201cquoted\u201d" "\n0",
        ),
    ],
)
def test_a_program_ends_well_whatever_happens_to_its_output(tmp_path, line, shown):
    result = shell(tmp_path, line, PYTHONIOENCODING="utf-8") if "LC_ALL" not in line else shell(tmp_path, line)
    assert result.stdout.strip() == shown
    assert result.stderr in ("", "said\n")
    descriptor, standard = (tmp_path / "result").read_text().split()
    assert int(descriptor) > 2 and standard == "012"


def test_output_that_is_read_is_written_whole(tmp_path):
    lines = shell(tmp_path, "PROGRAM", PYTHONIOENCODING="utf-8").stdout.splitlines()
    assert lines == [f"line {number} “quoted”" for number in range(20000)]


def test_a_failure_is_remembered_and_nothing_raises():
    with open("/dev/full", "w") as full:
        stream = streams.lenient(full)
        assert streams.failure(stream) is None
        print("lost", file=stream)
        failure = streams.failure(stream)
        assert failure is not None and failure.strerror == "No space left on device"
        print("lost as well", file=stream, flush=True)


def test_a_stream_without_a_descriptor_stays_as_it_is():
    stream = io.StringIO()
    assert streams.lenient(stream) is stream and streams.failure(stream) is None


@pytest.mark.parametrize("module", ["benchmarks", "tinynet.data.rebuild", "compile_matrix.matrix"])
def test_modules_that_are_run_protect_their_streams(module):
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", module, "--help"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONPATH": path}, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (result.returncode, result.stderr) == (0, "")
