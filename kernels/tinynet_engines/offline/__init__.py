"""Compile-only driver and launch report: what a GPU would run, determined without a GPU.

`with tinynet.inspect("sm_90") as report:` sends ordinary code through Triton's own launch and compilation to machine
code, and records each launch instead of running it. Importing this package does not import Triton; the first inspection
does.
"""

from tinynet_engines.offline.session import inspect, is_inspecting

__all__ = ["inspect", "is_inspecting"]
