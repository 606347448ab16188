"""The scene renderer: thermal, colour and label pictures of streets, houses and parks from a seed.

This is its one door: nothing outside imports the modules in this folder.
"""

from cmmfnet.data.scenes.repainting import repaint
from cmmfnet.data.scenes.scenes import KINDS, TAG_SHARE, Scene, render, write_pairs

__all__ = ["KINDS", "TAG_SHARE", "Scene", "render", "repaint", "write_pairs"]
