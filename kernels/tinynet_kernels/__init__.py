"""tinynet's Triton kernels and their launchers, one file a column.

A launcher (`linear.linear_forward`, ...) allocates the outputs, picks one tile by rule and launches. It knows neither
autograd nor modules: those live on the floors above, in `tinynet.ops` and `tinynet.nn`. Modules here are imported where
they are used, since importing a kernel imports Triton.
"""
