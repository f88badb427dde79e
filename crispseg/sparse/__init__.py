"""Sparse 2-D tensors in plain PyTorch: the readable reference of every kernel."""
