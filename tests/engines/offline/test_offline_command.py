"""`tinynet inspect`: scripts, files it writes, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from compile_matrix.matrix import load_costs

from tinynet.cli import main
from tinynet_engines.offline.report import DISCLAIMER
from tinynet_engines.offline.targets import TARGETS

HERE = Path(__file__).parent
SCRIPT = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from offline_kernels import narrow_copy_kernel
assert __name__ == "__main__"
elements = int(sys.argv[1])
x = torch.empty(elements, device="meta")
narrow_copy_kernel[(-(-elements // 1024),)](x, x, elements, BLOCK=1024)
sys.exit(0)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_a_script_is_run_with_its_arguments_once_per_target(script: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    written = tmp_path / "report.json"
    assert main(["inspect", script, "--target", "sm_90,gfx942", "--json", str(written), "--", "5000"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(DISCLAIMER) == 2
    assert "narrow_copy_kernel" in shown and "H100" in shown and "MI300X" in shown
    reports = json.loads(written.read_text())
    assert [report["target"]["name"] for report in reports] == ["sm_90", "gfx942"]
    for report in reports:
        assert report["total"]["bytes"] == 2 * 5000 * 4
        assert report["launches"][0]["grid"] == [5, 1, 1]


def test_an_error_of_the_program_sets_the_exit_status(script: str, capsys: pytest.CaptureFixture):
    assert main(["inspect", script, "--", str((1 << 31) + 2048)]) == 1
    assert "error: narrow_copy_kernel: index_overflow: x_ptr spans 2147485696 elements" in capsys.readouterr().out


class Page(HTMLParser):
    """Collects references to other resources and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        assert tag not in ("script", "link", "img", "iframe")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_one_file_with_a_plot_and_a_bar_per_kernel(script: str, tmp_path: Path):
    written = tmp_path / "report.html"
    main(["inspect", script, "--target", "sm_90,sm_80", "--html", str(written), "--", "5000"])
    source = written.read_text()
    page = Page()
    page.feed(source)
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(" not in source and "@import" not in source
    assert DISCLAIMER in page.text
    plots = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    bars = [ElementTree.fromstring(plot) for plot in plots if "least time by kernel" in plot]
    assert len(bars) == 2
    for bar in bars:
        assert next(text.text for text in bar.iter("text")) == "narrow_copy_kernel"
        assert max(float(rectangle.get("width", 0)) for rectangle in bar.iter("rect")) > 100


def spilling(launches: list[dict[str, Any]]) -> list[str]:
    """Kernels that spill; Triton versions other than that of the recorded figures spill a few values."""
    recorded = bool(load_costs())
    return [each["kernel"] for each in launches if each["loop_spills"] or (recorded and each["spill_bytes"])]


@pytest.mark.parametrize("model, targets", [("mlp", "gfx942,sm_90"), *(("cnn", target) for target in TARGETS)])
def test_a_training_step_of_a_model_of_images(model: str, targets: str, tmp_path: Path):
    """bf16, batch 256: no error, no spill, within limits; every kernel of ours declares its cost."""
    written = tmp_path / "report.json"
    arguments = ["inspect", "--model", model, "--batch-size", "256", "--dtype", "bf16"]
    assert main([*arguments, "--target", targets, "--json", str(written)]) == 0
    for report in json.loads(written.read_text()):
        launches = report["launches"]
        assert sum(launch["flops"] for launch in launches) == report["total"]["flops"]
        assert {launch["cost_source"] for launch in launches} == {"launcher"}
        assert not spilling(launches)
        assert all(launch["shared_bytes"] <= launch["shared_limit"] for launch in launches)
        names = {launch["kernel"] for launch in launches}
        assert {"linear_forward_kernel", "linear_backward_kernel", "adam_kernel"} <= names
        assert ("convolution_weight_gradient_boxes_kernel" in names) == (model == "cnn")
        kinds = {finding["kind"] for launch in launches for finding in launch["findings"]}
        assert kinds <= {
            "vectorization",
            "serialized_wait",
            "spill",
        }  # spills: see above; odd class counts and NCHW images load narrowly


@pytest.mark.parametrize("model", ["sequence-classifier", "char-language-model", "forecaster"])
def test_a_training_step_of_a_model_of_sequences(model: str, tmp_path: Path):
    written = tmp_path / "report.json"
    assert main(["inspect", "--model", model, "--batch-size", "16", "--target", "sm_90", "--json", str(written)]) == 0
    (report,) = json.loads(written.read_text())
    assert not spilling(report["launches"])
    assert {launch["cost_source"] for launch in report["launches"]} == {"launcher"}
    kernels = {launch["kernel"] for launch in report["launches"]}
    assert "adam_kernel" in kernels and any(name.startswith(("gru", "lstm")) for name in kernels)


@pytest.mark.parametrize("arguments, message", [
    (["inspect"], "give one of a script, --model and --against"),
    (["inspect", "no_such_script.py"], "no script no_such_script.py"),
    (["inspect", "--model", "mlp", "--target", "sm_90,sm_70"], "got sm_70"),
    (["inspect", "--model", "mlp", "--batch-size", "0"], "must be an integer of at least 1, got '0'"),
    (["inspect", "--model", "no_such_model"], "--model: expected one of convnet, cnn, mlp, airbench,"),
])  # fmt: skip
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which TINYNET stands for the command."""
    program = '"$PYTHON" -c "import sys; from tinynet.cli import main; sys.exit(main())"'
    environment = {**os.environ, "PYTHON": sys.executable}
    line = line.replace("TINYNET", program)
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", ["--help", "inspect --help"])
def test_help_that_nobody_reads_ends_quietly(arguments: str, tmp_path: Path):
    answer = command(f"PYTHONUNBUFFERED=1 TINYNET {arguments} | head -c 1; echo $PIPESTATUS", tmp_path)
    assert (answer.stdout, answer.stderr) == ("u0\n", "")


def test_a_report_that_nobody_reads_is_written_all_the_same(script: str, tmp_path: Path):
    answer = command("TINYNET inspect script.py --json r.json -- 5000 | head -0; echo $PIPESTATUS", tmp_path)
    assert (answer.stdout, answer.stderr) == ("0\n", "")
    assert json.loads((tmp_path / "r.json").read_text())[0]["target"]["name"] == "sm_90"


def test_a_report_that_does_not_fit_fails_with_a_message(script: str, tmp_path: Path):
    answer = command("TINYNET inspect script.py -- 5000 > /dev/full", tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == "tinynet: standard output cannot be written: No space left on device\n"


def test_a_file_that_cannot_be_written_is_a_sentence(script: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refused:
        main(["inspect", script, "--json", str(tmp_path / "nowhere" / "r.json"), "--", "5000"])
    assert refused.value.code == 2
    assert "r.json cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_a_sentence(number: int, tmp_path: Path, capsys: pytest.CaptureFixture):
    script = tmp_path / "script.py"
    script.write_text(f"import os, time\nos.kill(os.getpid(), {number:d})\ntime.sleep(30)\n")
    assert main(["inspect", str(script)]) == 128 + number
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert capsys.readouterr().err == f"tinynet: interrupted by {name}\n"
