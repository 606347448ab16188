"""The renderer of street, house and park scenes: thermal, colour and labels of each frame."""
