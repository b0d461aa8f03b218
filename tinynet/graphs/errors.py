"""The error of a step that cannot be replayed."""


class GraphError(RuntimeError):
    """A step does something that a replay would miss, or a replay does not fit what was recorded."""
