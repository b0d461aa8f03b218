"""Two-dimensional convolution. `spec` needs no Triton, so nothing is imported here."""
