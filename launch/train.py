"""Train one network on the ranks that `accelerate launch launch/train.py CONFIG [key=value ...]` starts."""

import sys

from choral.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
