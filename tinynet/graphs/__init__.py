"""A whole step, recorded once and replayed: `tinynet.graphed`."""

from tinynet.graphs.errors import GraphError
from tinynet.graphs.graphed import Graphed, graphed

__all__ = ["GraphError", "Graphed", "graphed"]
