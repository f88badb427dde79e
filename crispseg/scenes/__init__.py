"""Procedural street scenes with a moving camera and exact labels in CamVid's 11 classes.

Everything follows from a seed. Classes: 0 sky, 1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car,
9 pedestrian, 10 bicyclist; 255 where a person would not decide.
"""

from __future__ import annotations

from crispseg.scenes.render import Scene, render
from crispseg.scenes.write import write_scenes

__all__ = ["Scene", "render", "write_scenes"]
