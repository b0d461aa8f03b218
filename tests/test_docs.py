"""The documentation: every block of code runs, every link leads somewhere, every public name has an example.

The blocks of a page run in turn, in one namespace and an empty folder. A `text` block after a `python` or `sh` block is
its output, in which ... stands for anything. A block with a title is a file, which later blocks may import. A block
whose first line begins with "# Not run:" is left out.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
LEFT_OUT = "# Not run: "
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Names that PyTorch has deprecated; their pages name them.
DEPRECATED = {"NLLLoss2d", "upsample", "upsample_bilinear", "upsample_nearest"}
MODULES = (
    "tinynet",
    "tinynet.nn",
    "tinynet.functional",
    "tinynet.optim",
    "tinynet.models",
    "tinynet.data",
    "tinynet.train",
)


class Fenced(NamedTuple):
    """A block of a page."""

    language: str
    title: str | None
    text: str
    line: int


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Fenced]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Fenced(match["language"], match["title"], dedent(match["text"]), text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


def code(page: Path) -> Iterator[tuple[Fenced, str | None]]:
    """The blocks to run, each with the output that the page shows, or None."""
    found = blocks(page)
    for block, following in zip_longest(found, found[1:]):
        if block.language in ("python", "pycon", "sh") and not block.text.startswith(LEFT_OUT):
            yield block, following.text if following is not None and following.language == "text" else None


WITH_CODE = [page for page in PAGES if any(code(page))]


@pytest.fixture
def cpu_engine(device: str, kernels_reason: str | None) -> None:
    """Skips a test where the CPU engine does not run: pages and docstrings show what it prints."""
    if device != "cpu" or kernels_reason is not None:
        pytest.skip("the CPU engine does not run here")


@pytest.mark.every_case
@pytest.mark.usefixtures("pytorchs_settings", "cpu_engine")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    for folder in ("examples", "tests"):  # which the commands of some pages name
        (tmp_path / folder).symlink_to(ROOT / folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block, expected in code(page):
        place = f"{name_of(page)}:{block.line}"
        if block.title is not None:
            Path(block.title).write_text(block.text)
            continue
        if block.language == "pycon":
            run_session(block.text, namespace, place)
            continue
        output = run_shell(block.text) if block.language == "sh" else run_program(block, namespace, page)
        if expected is not None and not doctest.OutputChecker().check_output(expected, output, FLAGS):
            pytest.fail(f"{place} printed\n{output}")


def run_session(text: str, namespace: dict[str, Any], place: str) -> None:
    """Runs what follows >>>, and compares what it prints."""
    test = doctest.DocTestParser().get_doctest(text, namespace, place, place, 0)
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
    namespace.update(test.globs)
    assert not report.getvalue(), report.getvalue()


def run_program(block: Fenced, namespace: dict[str, Any], page: Path) -> str:
    lines = "\n" * block.line + block.text  # so that a traceback has the page's line
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(lines, page, "exec"), namespace)
    return output.getvalue()


def run_shell(text: str) -> str:
    done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.every_case
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """As GitHub resolves them; `mkdocs build --strict` checks those of the site."""
    prose = FENCE.sub("", page.read_text())
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{name_of(page)} links to #{anchor} of {target}"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_targets_and_files_that_pages_name_exist() -> None:
    """Of commands that are too slow to run here."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("", "sh", "console"):
                named = set(re.findall(r"^(?:\$ )?make (?:[A-Z_]+=\S+ )*([a-z-]+)", block.text, re.MULTILINE))
                assert named <= targets, f"{name_of(page)}:{block.line}: make {named - targets}"
                for path in re.findall(r"\b(?:examples|scripts|tests)/\w+\.py", block.text):
                    assert (ROOT / path).exists(), f"{name_of(page)}:{block.line}: {path}"


@pytest.mark.every_case
@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_example(module: str) -> None:
    pages = ROOT.glob("docs/api/*.md")
    text = "\n".join(block.text for page in pages for block, _ in code(page))
    loop = re.findall(r'"(\w+Pad)"', text)  # one block goes through the padding modules
    named = set(re.findall(r"\w+", text)) | {f"{name}{axes}" for name in loop for axes in ("1d", "2d", "3d")}
    missing = set(importlib.import_module(module).__all__) - named - DEPRECATED
    assert not missing, f"docs/api shows no example of {', '.join(sorted(missing))}"


@pytest.mark.usefixtures("pytorchs_settings", "cpu_engine")
def test_examples_of_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for the guard's, which needs the interpreter."""
    import torch

    import tinynet

    monkeypatch.chdir(tmp_path)
    modules = [importlib.import_module(name) for name in (*MODULES, "tinynet.nn.utils")]
    values = [getattr(module, name) for module in modules for name in module.__all__]
    public = {value for value in values if isinstance(value, type | FunctionType)} - {tinynet.guard}
    ours = [each for each in public if each.__module__.startswith("tinynet") and ">>>" in (each.__doc__ or "")]
    for value in ours:
        namespace = {"torch": torch, "tinynet": tinynet, **vars(sys.modules[value.__module__])}
        run_session(dedent(value.__doc__ or ""), namespace, f"docstring of {value.__name__}")
    assert len(ours) > 10


def test_pages_of_results_are_those_of_the_recorded_files() -> None:
    spec = importlib.util.spec_from_file_location("render_results", ROOT / "scripts" / "render_results.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, text in script.pages().items():
        assert (ROOT / "docs/results" / name).read_text() == text, f"{name}: run python scripts/render_results.py"


def test_site_builds(tmp_path: Path) -> None:
    """No broken link, no unresolved name, and nothing that is loaded from another server."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?(https?:[^">\s]*)', page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"
