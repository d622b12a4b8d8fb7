"""Evaluate a run or checkpoints and write prediction ledgers, as one rank of Accelerate.

accelerate launch launch/evaluate.py RUN|CHECKPOINT... [key=value ...]
"""

import sys

from choral.cli.workflow.evaluation import record_evaluation
from choral.inference.__main__ import main

if __name__ == "__main__":
    sys.exit(main(after=record_evaluation))
