"""The floors of CONTRIBUTING: which module may import which, and that no two files import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The longest matching prefix of a module's name gives its floor.
FLOORS = {
    "tinynet.absent": 0,
    "tinynet.arguments": 0,
    "tinynet.signals": 0,
    "tinynet.streams": 0,
    "tinynet.version": 0,
    "tinynet_kernels": 1,
    "tinynet_engines": 1,
    "tinynet.dispatch": 2,
    "tinynet.ops": 2,
    "tinynet.functional": 2,
    "tinynet.graphs": 3,
    "tinynet.nn": 3,
    "tinynet.optim": 3,
    "tinynet.train": 4,
    "tinynet.models": 4,
    "tinynet.conversion": 4,
    "tinynet.data": 4,
    "tinynet.programs": 4,
    "tinynet.cli": 5,
    "tinynet": 5,  # its names are those of all floors, loaded on first use
}


def modules() -> dict[str, Path]:
    """Every installed module, by name."""
    found = {}
    for root, pattern in ((ROOT, "tinynet/**/*.py"), (ROOT / "kernels", "tinynet_*/**/*.py")):
        for path in root.glob(pattern):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path], *, lazy: bool) -> Iterator[str]:
    """Our modules that a file imports; with `lazy` also those imported inside functions."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in inside)


def floor(module: str) -> int:
    parts = module.split(".")
    starts = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(FLOORS[start] for start in starts if start in FLOORS)


def test_no_import_goes_to_a_higher_floor() -> None:
    known = modules()
    arrows = [(name, other) for name, path in known.items() for other in imports(path, known, lazy=True)]
    assert len(arrows) > 100
    wrong = {f"{name} imports {other}" for name, other in arrows if floor(other) > floor(name) and name != "tinynet"}
    assert not wrong, sorted(wrong)


def test_engines_know_no_kernel_and_nothing_of_tinynet() -> None:
    known = modules()
    for name, path in known.items():
        if name.startswith("tinynet_engines"):
            others = set(imports(path, known, lazy=True))
            strangers = {other for other in others if not other.startswith("tinynet_engines")}
            assert strangers <= {"tinynet_kernels.launch"}, (name, strangers)


def test_no_files_import_each_other() -> None:
    known = modules()
    graph = {name: set(imports(path, known, lazy=True)) for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above[above.index(name) :], name))}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_zeros_and_static_range_are_given_names() -> None:
    """Triton 3.6 takes no field of a constexpr tuple there, such as TILE.block_m."""
    found = []
    for path in (ROOT / "kernels" / "tinynet_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.zeros", "tl.static_range"):
                found += [f"{path.name}:{node.lineno}" for argument in node.args if _has_field(argument)]
    assert not found


def _has_field(argument: ast.expr) -> bool:
    """Whether an argument, or an element of a tuple, is a field of a name in capitals."""
    parts = argument.elts if isinstance(argument, ast.Tuple) else [argument]
    return any(isinstance(part, ast.Attribute) and ast.unparse(part.value).isupper() for part in parts)
