"""What runs kernels where Triton itself does not, or looks into them: none of it knows of `tinynet`.

`cpu` compiles them to native code, `interpreter` repairs Triton's interpreter and guards what runs in it, and `offline`
compiles them for GPUs that are not there.
"""
