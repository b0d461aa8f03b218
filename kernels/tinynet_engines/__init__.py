"""Engines that run kernels where Triton itself cannot, or inspect them. None of them imports `tinynet`.

`cpu` compiles kernels to native code, `interpreter` repairs Triton's interpreter and checks what runs in it, and
`offline` compiles kernels for GPUs that are not present.
"""
