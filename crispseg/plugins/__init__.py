"""The sparse ops: one written contract, its CPU and CUDA kernels, and the shells that carry them into runtimes."""
