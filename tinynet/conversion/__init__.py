"""Models of torch.nn computed by tinynet, and back: `tinynet.convert`, `revert` and `export`."""

from tinynet.conversion.convert import convert, revert
from tinynet.conversion.export import export
from tinynet.conversion.report import Report

__all__ = ["Report", "convert", "export", "revert"]
