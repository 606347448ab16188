"""Files and pictures: atomic writes, listing, reading and writing."""
