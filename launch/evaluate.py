"""Write the ledger of a run on the ranks that `accelerate launch launch/evaluate.py RUN [key=value ...]` starts."""

import sys

from choral.predict.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
