"""`python -m choral` is the command `choral`."""

import sys

from choral.cli import main

sys.exit(main())
