"""Pooling of one, two or three axes: `maximum`, `mean` and `unpool` hold kernels and launchers.

`window` holds what kernels share: tiles and the places of taps. `spec` needs no Triton, so nothing is imported here.
"""
