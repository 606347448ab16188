"""``python -m cmmfnet`` is the command ``cmmfnet``."""

import sys

from cmmfnet.cli import main

sys.exit(main())
