"""Models of torch.nn computed by tinynet, and back: `tinynet.convert` and `tinynet.revert`."""

from tinynet.conversion.convert import convert, revert
from tinynet.conversion.report import Report

__all__ = ["Report", "convert", "revert"]
