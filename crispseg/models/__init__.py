"""Torch modules: dense base segmenters and refiners. Host only."""
