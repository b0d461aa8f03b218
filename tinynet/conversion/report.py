"""What `convert` and `revert` did to a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Report:
    """What was replaced, left and joined. `str(report)` is readable.

    Attributes:
        replaced: the class of each replaced layer, by the layer's name.
        left: why a layer stayed as it was, by its name.
        joined: the names of layers that run in one call, first to last, one tuple for each call.
        not_traced: why the layers of a module could not be joined, by the module's name.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    joined: list[tuple[str, ...]] = field(default_factory=list)
    not_traced: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        classes = Counter(self.replaced.values()).most_common()
        kinds = ", ".join(f"{count} {name}" for name, count in classes)
        lines = [f"replaced {len(self.replaced)} layers" + (f": {kinds}" if kinds else "")]
        if self.joined:
            example = " + ".join(self.joined[0])
            lines.append(f"joined the layers of {len(self.joined)} calls, such as {example}")
        lines += _by_reason("left", self.left)
        lines += _by_reason("called layer by layer", self.not_traced)
        return "\n".join(lines)


def _by_reason(what: str, reasons: dict[str, str]) -> list[str]:
    """One line for each reason, with the names it is given for."""
    names = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(name or "the model")
    return [f"{what}: {_listed(found)}: {reason}" for reason, found in names.items()]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
