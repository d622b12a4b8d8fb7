"""Train one model, as one rank of Accelerate.

accelerate launch launch/train.py CONFIG [key=value ...]
"""

import sys

from choral.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
