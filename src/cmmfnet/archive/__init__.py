"""Archives: any number of frames at any place, coloured with a manifest of every frame."""
