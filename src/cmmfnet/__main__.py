"""``python -m cmmfnet`` is the command ``cmmfnet``; under torchrun and ``accelerate launch``, one
process of several."""

import os
import sys
from typing import NoReturn

from cmmfnet.cli import main


def leave(status: int) -> NoReturn:
    """End this process. One of several ends without tearing the interpreter down:
    DistributedDataParallel never lets go of its process group (torch 2.13), whose threads then may
    abort the process ("terminate called without an active exception")."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
