"""The error of a step that cannot be replayed."""


class GraphError(RuntimeError):
    """A step does something that a replay would miss, or a replay does not fit what was recorded."""


class TooLargeError(GraphError):
    """What was recorded allocates more memory than is worth holding."""
