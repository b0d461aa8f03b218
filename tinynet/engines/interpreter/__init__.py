"""Triton's interpreter, made a trustworthy engine: true bfloat16, repaired faults, and the guard.

`TRITON_INTERPRET=1` runs a kernel in numpy, one program at a time. The stock interpreter computes bfloat16 on
the raw bit patterns and misses a few functions; `bfloat16.install()` cures that for the whole process.
`guard.guard` watches every memory access of the kernels launched inside it.

Importing this package imports neither Triton nor numpy: both come in when one of the two is called.
"""
