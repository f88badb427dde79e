"""Base segmenters in PyTorch."""
