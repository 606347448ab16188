"""Data: the layout of pairs on disk, augmentation, pseudo-thermal simulation and rendered
scenes."""
