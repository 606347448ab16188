"""A file into a thermal frame: decoders (decode.py picks one; TIFF: tiff.py; cameras/), values and
units, palettes of false colour, the stretch to [-1, 1] (stretch.py)."""
