"""Files that thermal cameras write: one module a format, each of which gives a ``Reading``.

No module here decides what happens to a reading afterwards; ``thermal/decode.py`` picks the module
by the first bytes of a file, and ``thermal/sequence.py`` walks through files of several frames.
"""
