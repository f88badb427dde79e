"""Compiled graphs on a device: ONNX Runtime and the native engine."""
