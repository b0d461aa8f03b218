"""Convolutions whose groups hold one input channel, above all depthwise ones: no matrix product.

`launch` decides which kernels run: those that compute rows of pixels (`forward`, `input_gradient`, `weight_gradient`)
or those of `general`. Nothing is imported here.
"""
