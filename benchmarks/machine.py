"""The machine of a run: its name and versions, and how busy, fast and warm it is."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

BUSY = 0.15  # share of the processors that other programs use, from which on a run says so


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _read("/proc/cpuinfo").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    import triton

    import tinynet

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "tinynet": tinynet.__version__,
        "cuda": str(torch.version.cuda),
        "hip": str(torch.version.hip),
    }


def commit() -> str | None:
    """Returns the commit of the checkout, with a plus if files differ from it; None outside of one."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class State:
    """The machine at one moment; None for what it does not tell.

    Attributes:
        load: average number of programs that were running during the last minute.
        cpu_mhz: mean frequency of the processor's cores.
        gpu_mhz, gpu_watts, gpu_celsius: the GPU's clock, power and temperature; they need the package nvidia-ml-py.
        busy_s, own_s: seconds that all processors together, and this process with its children, have been working.
    """

    load: float
    cpu_mhz: float | None
    gpu_mhz: float | None
    gpu_watts: float | None
    gpu_celsius: float | None
    busy_s: float | None
    own_s: float

    @classmethod
    def now(cls, device: torch.device) -> State:
        """Reads the state."""
        mhz = [float(line.split(":")[1]) for line in _read("/proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
        times = os.times()
        is_gpu = device.type == "cuda"
        watts = _told(lambda: torch.cuda.power_draw(device)) if is_gpu else None
        return cls(
            load=os.getloadavg()[0],
            cpu_mhz=sum(mhz) / len(mhz) if mhz else None,
            gpu_mhz=_told(lambda: torch.cuda.clock_rate(device)) if is_gpu else None,
            gpu_watts=None if watts is None else watts / 1000,
            gpu_celsius=_told(lambda: torch.cuda.temperature(device)) if is_gpu else None,
            busy_s=_busy_seconds(),
            own_s=times.user + times.system + times.children_user + times.children_system,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns what is worth storing."""
        return {name: value for name, value in asdict(self).items() if value is not None and not name.endswith("_s")}


def used_by_others(before: State, after: State, seconds: float) -> float | None:
    """Returns the share of all processors that other programs used between two moments; None where nobody tells."""
    if before.busy_s is None or after.busy_s is None or seconds <= 0:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(1.0, max(0.0, others / seconds / (os.cpu_count() or 1)))


def _busy_seconds() -> float | None:
    """Seconds of work of all processors since the machine started, including what a hypervisor took away."""
    fields = _read("/proc/stat").partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return None
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, fields)
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _told(read: Any) -> float | None:
    """What the GPU's driver tells, or None."""
    with suppress(Exception):  # the package is absent, or the driver refuses, in many ways
        return float(read())
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
