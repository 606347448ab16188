"""Training pairs: the layout on disk, reading and augmentation, simulated thermal frames, the scene
renderer (scenes/), recoloured pictures (made/), converters of other data sets (prepare/)."""
