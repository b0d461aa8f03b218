"""Two-dimensional convolution: `forward`, `input_gradient` and `weight_gradient` hold kernels and launchers.

The folder `depthwise` has those of groups with one input channel, `window` what kernels share, `tiles` the tile rules.
`spec` needs no Triton, so nothing is imported here.
"""
