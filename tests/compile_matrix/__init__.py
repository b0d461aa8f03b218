"""Every variant of every kernel, compiled and checked for every GPU target, without a GPU: `make compile-matrix`."""
