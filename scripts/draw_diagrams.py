"""Draws the diagrams of the documentation: docs/assets/*.svg.

    python scripts/draw_diagrams.py

Their boxes have colors of their own and their lines a middle grey, so that they look right on light and dark pages, on
GitHub too. None is wider than 540 units, so that a phone shows their text in a readable size.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"
GREY = "#8a8f98"
INK = "#1b1f24"
FILLS = {"code": "#263238", "blue": "#dbe4ff", "green": "#d3f0dc", "orange": "#ffe3c7", "grey": "#e9ecef"}
TEXT = {"code": "#e8eaf6"}
LINE_HEIGHT = 19


class Drawing:
    """An SVG of boxes, arrows and words; (x, y) is a box's upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = width, height
        self.title = title
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, text: str, fill: str = "blue") -> None:
        """A box with centered lines of text, the first of them bold; in "code" all start at its left edge."""
        color = TEXT.get(fill, INK)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{FILLS[fill]}" stroke="{GREY}"/>'
        )
        lines = text.split("\n")
        top = y + height / 2 - LINE_HEIGHT * (len(lines) - 1) / 2 + 5
        for number, line in enumerate(lines):
            place = top + number * LINE_HEIGHT
            if fill == "code":
                self.text(x + 14, place, line, color, 'font-family="ui-monospace, Menlo, Consolas, monospace"')
            else:
                weight = ' font-weight="600"' if number == 0 and len(lines) > 1 else ""
                self.text(x + width / 2, place, line, color, f'text-anchor="middle"{weight}')

    def words(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """Text without a box, in the grey of lines."""
        for number, line in enumerate(text.split("\n")):
            self.text(x, y + number * LINE_HEIGHT, line, GREY, f'text-anchor="{anchor}"')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head at the last."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#head)"/>')

    def cell(self, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
        """A square of a table of numbers."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{FILLS[fill]}" stroke="{GREY}"/>'
        )
        self.text(x + width / 2, y + height / 2 + 5, text, INK, 'text-anchor="middle"')

    def text(self, x: float, y: float, text: str, color: str, more: str) -> None:
        """Words that start, or with an anchor among the attributes `more` end or are centered, at (x, y)."""
        self.parts.append(f'<text x="{x}" y="{y}" fill="{color}" xml:space="preserve" {more}>{escape(text)}</text>')

    def save(self, name: str) -> None:
        """Writes the file."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14">'
            f'<title>{escape(self.title)}</title><defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
            f'markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>'
        )
        (ASSETS / f"{name}.svg").write_text("\n".join([head, *self.parts, "</svg>"]) + "\n")


def landing() -> None:
    draw = Drawing(540, 396, "One kernel in Triton runs on four engines")
    draw.box(60, 8, 420, 34, 'nn.Linear(784, 256, activation="gelu")', "code")
    draw.arrow((270, 42), (270, 66))
    draw.box(
        10,
        68,
        520,
        150,
        "for k in range(0, K, BLOCK_K):\n"
        "    x = tl.load(x_ptr + k, mask=..., other=0.0)\n"
        "    w = tl.load(w_ptr + k, mask=..., other=0.0)\n"
        "    z += tl.dot(x, w)\n"
        "z += tl.load(bias_ptr, mask=..., other=0.0)\n"
        "tl.store(y_ptr, gelu(z), mask=...)",
        "code",
    )
    draw.words(270, 240, "one kernel, in outline: written once, it runs everywhere")
    for x, text, fill in (
        (10, "GPU\nTriton's own\ncompilers", "green"),
        (143, "CPU\nC, then\nmachine code", "green"),
        (276, "interpreter\nwith checks\nof memory", "orange"),
        (409, "no device\nreports for\nnine GPUs", "blue"),
    ):
        draw.arrow((270, 250), (270, 262), (x + 60, 262), (x + 60, 284))
        draw.box(x, 286, 121, 76, text, fill)
    draw.words(70, 384, "trains")
    draw.words(203, 384, "trains")
    draw.words(336, 384, "debugs")
    draw.words(469, 384, "inspects")
    draw.save("landing")


def floors() -> None:
    draw = Drawing(540, 396, "Floors and columns: each operator has one file on every floor")
    rows = (
        ("tests", "test_glu.py", "test_conv.py", "test_linear.py"),
        ("models, training", "", "", ""),
        ("nn, optim", "GLU", "Conv2d", "Linear"),
        ("ops, dispatch", "ops/glu.py", "ops/conv.py", "ops/linear.py"),
        ("kernels", "glu.py", "conv/", "linear.py"),
        ("engines", "", "", ""),
    )
    for number, (name, *files) in enumerate(rows):
        y = 36 + number * 60
        fill = "green" if name == "kernels" else "grey"
        draw.box(10, y, 520, 50, "", fill)
        draw.text(22, y + 30, name, INK, 'font-weight="600"')
        if not any(files):
            label = "use all columns" if name.startswith("models") else "GPU driver, CPU engine, interpreter"
            draw.text(350, y + 30, label, INK, 'text-anchor="middle"')
            continue
        for column, file in enumerate(files):
            draw.box(170 + column * 120, y + 9, 106, 32, file, "orange")
    for column, name in enumerate(("glu", "conv", "linear")):
        draw.words(223 + column * 120, 24, name)
    draw.save("floors")


def call() -> None:
    draw = Drawing(540, 500, "What happens in a call, and in its backward")
    draw.words(140, 18, "layer(x)")
    draw.words(400, 18, "loss.backward()")
    left = (
        (30, "nn\nmodule.forward", "grey"),
        (110, "ops\ncheck the arguments", "grey"),
        (190, "dispatch\nroute: who computes?", "blue"),
        (310, "ops\nFunction.forward\nsaves tensors", "grey"),
    )
    for y, text, fill in left:
        draw.box(40, y, 200, 66 if text.count("\n") == 2 else 52, text, fill)
    for y in (82, 162):
        draw.arrow((140, y), (140, y + 26))
    draw.arrow((140, 242), (140, 308))
    draw.words(130, 282, "plain tensors", "end")
    right = (
        (110, "autograd\nFunction.backward", "grey"),
        (190, "through_kernels\nfirst derivatives only?", "blue"),
        (310, "ops\nthe gradients\nthat are wanted", "grey"),
    )
    for y, text, fill in right:
        draw.box(300, y, 200, 66 if text.count("\n") == 2 else 52, text, fill)
    draw.arrow((400, 28), (400, 108))
    draw.arrow((400, 162), (400, 188))
    draw.arrow((400, 242), (400, 308))
    draw.words(410, 278, "yes", "start")
    draw.box(205, 252, 130, 44, "otherwise:\nplain PyTorch", "orange")
    draw.arrow((240, 225), (262, 225), (262, 250))
    draw.arrow((300, 225), (278, 225), (278, 250))
    draw.box(40, 404, 460, 34, "kernels: launcher → problem (tile and grid, cached) → kernel", "green")
    draw.arrow((140, 376), (140, 402))
    draw.arrow((400, 376), (400, 402))
    draw.arrow((270, 438), (270, 458))
    draw.box(40, 460, 460, 34, "engines: GPU driver, CPU engine, interpreter or inspection", "green")
    draw.save("call")


def cpu_engine() -> None:
    draw = Drawing(540, 440, "How the CPU engine compiles a kernel, and how it launches it again")
    draw.words(135, 18, "first launch")
    draw.words(405, 18, "every later launch")
    _column(
        draw,
        12,
        ("@triton.jit function", "code"),
        ("Triton IR\nby Triton's front end", "grey"),
        ("C\none function per kernel,\nin Triton's cache", "blue"),
        ("machine code\nby gcc or clang,\nin ~/.cache/tinynet/cpu", "grey"),
        ("launch plan", "green"),
    )
    _column(
        draw,
        282,
        ("look up the plan\nby dtypes, integers, constants,\ngrid and number of threads", "blue"),
        ("pack the arguments\ninto one block of memory", "grey"),
        ("call the C function\nits programs share the threads\nof PyTorch's pool", "green"),
    )
    draw.save("cpu-engine")


def _column(draw: Drawing, x: float, *steps: tuple[str, str]) -> None:
    """Boxes below each other, with arrows between them."""
    y = 32.0
    for number, (text, fill) in enumerate(steps):
        if number:
            draw.arrow((x + 123, y), (x + 123, y + 22))
            y += 24
        height = 36 + LINE_HEIGHT * text.count("\n")
        draw.box(x, y, 246, height, text, fill)
        y += height


def winograd() -> None:
    draw = Drawing(540, 330, "Winograd's algorithm for a tile of 4 x 4 output pixels")
    for row in range(6):
        for column in range(6):
            draw.cell(20 + column * 22, 40 + row * 22, 22, 22, "", "blue")
    draw.words(86, 28, "patch d, 6 x 6")
    for row in range(3):
        for column in range(3):
            draw.cell(53 + column * 22, 232 + row * 22, 22, 22, "", "orange")
    draw.words(86, 318, "filter g, 3 x 3")
    draw.box(190, 80, 84, 52, "Bᵀ d B", "grey")
    draw.box(190, 239, 84, 52, "G g Gᵀ", "grey")
    draw.arrow((152, 106), (188, 106))
    draw.arrow((119, 265), (188, 265))
    draw.box(306, 148, 104, 76, "36 products\nsummed over\nthe channels", "green")
    draw.arrow((274, 106), (358, 106), (358, 146))
    draw.arrow((274, 265), (358, 265), (358, 226))
    draw.box(442, 160, 78, 52, "Aᵀ M A", "grey")
    draw.arrow((410, 186), (440, 186))
    for row in range(4):
        for column in range(4):
            draw.cell(437 + column * 22, 40 + row * 22, 22, 22, "", "blue")
    draw.arrow((481, 160), (481, 132))
    draw.words(481, 28, "output, 4 x 4")
    draw.words(430, 296, "the definition has\n16 · 9 = 144 products")
    draw.save("winograd")


def packed() -> None:
    draw = Drawing(540, 250, "Three sequences of different lengths, padded and packed")
    names = ("maria", "chen", "li")
    draw.words(110, 22, "padded: 15 cells")
    for row, name in enumerate(names):
        for step in range(5):
            letter = name[step] if step < len(name) else "·"
            draw.cell(20 + step * 36, 36 + row * 32, 36, 32, letter, "blue" if step < len(name) else "grey")
    for step in range(5):
        draw.words(38 + step * 36, 150, f"t={step}")
    draw.words(390, 22, "packed: 11 rows, step by step")
    sizes = [sum(len(name) > step for name in names) for step in range(5)]
    fills = ("blue", "green")
    x = 20
    for step, size in enumerate(sizes):
        start = x
        for sequence in range(size):
            draw.cell(x, 184, 36, 32, names[sequence][step], fills[step % 2])
            x += 36
        draw.words((start + x) / 2, 236, f"t={step}")
        x += 18
    draw.words(
        390,
        60,
        "batch_sizes = [3, 3, 2, 2, 1]\noffset of a step = sum of those before\n"
        "at step t, the first batch_sizes[t]\nsequences are active",
    )
    draw.arrow((110, 158), (110, 180))
    draw.save("packed")


def main() -> None:
    ASSETS.mkdir(parents=True, exist_ok=True)
    for drawing in (landing, floors, call, cpu_engine, winograd, packed):
        drawing()


if __name__ == "__main__":
    main()
