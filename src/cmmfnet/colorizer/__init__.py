"""A frame and a text into a colour picture: ``FrameColorizer`` (base.py) and its runtimes, the size
of a frame (sizes.py), the commands colorize, explain and demo, videos."""
