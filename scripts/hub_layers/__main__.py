"""Writes tinynet's layers as a kernel repository for the Hugging Face Hub: `python -m scripts.hub_layers FOLDER`.

The layout is that of the package `kernels` 0.17 for kernels in pure Triton (`torch-noarch`): a package for each backend
in build/, which can be loaded from any path and in several versions at once. So imports are relative, and operators are
registered in a namespace of their own.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import tinynet

NAME = "tinynet-layers"
BACKENDS = ("cpu", "cuda", "rocm", "xpu")
OLDEST_KERNELS = "0.17.0"
ROOT = Path(__file__).parents[2]
# What the layers need: a folder or file, and its place in the package. `tinynet/__init__.py` becomes an empty file.
SOURCES = {
    "scripts/hub_layers/layers.py": "layers.py",
    "tinynet/absent.py": "tinynet/absent.py",
    "tinynet/dispatch.py": "tinynet/dispatch.py",
    "tinynet/functional.py": "tinynet/functional.py",
    "tinynet/ops": "tinynet/ops",
    "kernels/tinynet_kernels": "tinynet_kernels",
    "kernels/tinynet_engines": "tinynet_engines",
}
PACKAGES = ("tinynet", "tinynet_kernels", "tinynet_engines")
# Names in text, which no import statement shows: where, what, and what it becomes.
NAMES_IN_TEXT = {
    "tinynet/ops/kernels.py": ('f"tinynet_kernels.', "f\"{__name__.rpartition('.tinynet.')[0]}.tinynet_kernels."),
    "tinynet/ops/operator.py": ('NAMESPACE = "tinynet"', 'NAMESPACE = "IDENTITY"'),
    "tinynet/ops/activation_like.py": ('"tinynet.ops.activation"', 'f"{__package__}.activation"'),
}
CARD = """---
tags:
- kernels
license: apache-2.0
---

# {name}

Layers of torch.nn on hand-written Triton kernels, forward and backward, from tinynet {version}: {layers}.

```python
from kernels import LayerRepository, Mode, kernelize, replace_kernel_forward_from_hub, use_kernel_mapping

replace_kernel_forward_from_hub(torch.nn.Linear, "Linear")
layer = LayerRepository(repo_id="OWNER/{name}", layer_name="Linear", version=1)
with use_kernel_mapping({{"Linear": {{"cuda": layer}}}}):
    model = kernelize(model, mode=Mode.TRAINING, device="cuda")
```

They also run on CPUs, where Triton and a C compiler are installed. What the kernels do not take, such as float64 or
tensor subclasses, PyTorch's own operators compute.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="hub_layers", description="Write the layers for the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    write(options.folder)
    print(options.folder)


def write(folder: Path) -> None:
    """Writes the repository into a folder."""
    files = dict(_files())
    digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()[:8]
    for backend in BACKENDS:
        identity = f"_tinynet_layers_{backend}_{digest}"
        target = folder / "build" / f"torch-{backend}"
        for name, content in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(b'"IDENTITY"', f'"{identity}"'.encode()))
        metadata = {
            "id": identity,
            "name": NAME,
            "version": 1,
            "kernels-minver": OLDEST_KERNELS,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (target / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    layers = ", ".join(f"`{name}`" for name in _names_of(files["layers.py"]))
    (folder / "README.md").write_text(CARD.format(name=NAME, version=tinynet.__version__, layers=layers))
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")


def _files() -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of the package's files."""
    yield "__init__.py", b'"""Layers of torch.nn on tinynet\'s Triton kernels."""\n\nfrom . import layers as layers\n'
    yield "tinynet/__init__.py", b""
    for source, place in SOURCES.items():
        origin = ROOT / source
        for path in [origin] if origin.is_file() else sorted(origin.rglob("*")):
            name = place if path == origin else f"{place}/{path.relative_to(origin).as_posix()}"
            if path.suffix == ".py":
                yield name, _relative(name, path.read_text()).encode()
            elif path.is_file() and "__pycache__" not in path.parts:
                yield name, path.read_bytes()


def _relative(name: str, text: str) -> str:
    """Returns a module's text with relative imports.

    Args:
        name: its place in the package.
        text: its text.
    """
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in PACKAGES for alias in node.names):
            raise ValueError(f"{name}:{node.lineno}: only `from ... import` can become relative")
        if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).split(".")[0] in PACKAGES:
            index = node.lineno - 1
            up = "." * (name.count("/") + 1)
            lines[index] = lines[index].replace(f"from {node.module} import", f"from {up}{node.module} import", 1)
    text = "\n".join(lines)
    if name in NAMES_IN_TEXT:
        old, new = NAMES_IN_TEXT[name]
        if old not in text:
            raise ValueError(f"{name} has no {old}: adapt NAMES_IN_TEXT")
        text = text.replace(old, new)
    return text


def _names_of(layers: bytes) -> list[str]:
    return [node.name for node in ast.parse(layers).body if isinstance(node, ast.ClassDef)]


if __name__ == "__main__":
    main()
