"""The one kind of error that is for users: the command line prints its message alone."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The ``errno`` of an ``OSError`` for a full disk or quota."""
NO_MORE_FILES = (*DISK_FULL, errno.EROFS)
"""The ``errno`` of an ``OSError`` after which no further file can be written to the disk."""


class UserError(ValueError):
    """A request that cannot be carried out as given.

    The message says what was found, what was expected and what to give instead, so no traceback
    is needed. Any other exception, except ``OSError``, is a mistake of this package.
    """
