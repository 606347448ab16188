"""A thermal frame: decoding a file, values and units, palettes, stretching to [-1, 1]."""
