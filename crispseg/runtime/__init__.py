"""Frames in, label maps out: the pipeline, its sources and sinks, and what it measures."""
