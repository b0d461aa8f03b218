"""Batch and instance normalization: `forward` and `backward` hold kernels and launchers, `walk` what they share.

`tiles` holds the tile rule. `axes` needs no Triton, so nothing is imported here.
"""
