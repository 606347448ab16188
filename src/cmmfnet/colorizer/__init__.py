"""A frame and a text to colour: runtimes, sizes, the colorize command, pages to look at."""
