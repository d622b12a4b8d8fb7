"""Write ledgers on the ranks that `accelerate launch launch/evaluate.py RUN|CHECKPOINT... [key=value ...]` starts."""

import sys

from choral.cli.workflow.evaluation import record_evaluation
from choral.inference.__main__ import main

if __name__ == "__main__":
    sys.exit(main(after=record_evaluation))
