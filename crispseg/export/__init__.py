"""PyTorch modules to ONNX files and bundles."""
