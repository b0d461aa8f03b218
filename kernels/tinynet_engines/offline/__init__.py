"""Compile-only driver and launch report: what a GPU would run, known without a GPU.

`with tinynet.inspect("sm_90") as report:` sends ordinary code through Triton's real launch path, compilation to machine
code included, and records each launch instead of running it. Importing this package costs nothing: Triton is imported
when the first inspection starts.
"""

from tinynet_engines.offline.session import inspect, is_inspecting

__all__ = ["inspect", "is_inspecting"]
