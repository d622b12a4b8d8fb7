"""Write ledgers on the ranks that `accelerate launch launch/evaluate.py RUN|CHECKPOINT... [key=value ...]` starts."""

import sys

from choral.predict.__main__ import main
from choral.workflow.evaluation import record_evaluation

if __name__ == "__main__":
    sys.exit(main(after=record_evaluation))
