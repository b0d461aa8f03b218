"""Operators: per column the reference in plain PyTorch, the autograd Function and the checked public function."""
