"""`python -m choral.training.check_names JSON`: check names of models and optimizers in a process of its own.

The caller waits for training jobs and should not hold torch, which knows the names. JSON is {"models": [...],
"optimizers": [...]}. Exit status 0: all names are valid; 2: one is not, and the message is on stdout.
"""

from __future__ import annotations

import json
import sys

from choral.core.errors import ConfigError
from choral.models.build import check_model_name
from choral.training.optimizer import check_optimizer


def main() -> int:
    """Check the names of the command line and return the exit status."""
    names = json.loads(sys.argv[1])
    try:
        for name in dict.fromkeys(names["models"]):
            check_model_name(name)
        for name in dict.fromkeys(names["optimizers"]):
            check_optimizer(name)
    except ConfigError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
