"""TensorRT 8.5 to 11: build, cache, run and profile engines. ``compat`` is the one place that knows versions."""
