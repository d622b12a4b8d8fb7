"""Answer for images on the ranks that `accelerate launch launch/predict.py BUNDLE|RUN IMAGES... -o FILE` starts."""

import sys

from choral.deploy.bundle.ranks import main

if __name__ == "__main__":
    sys.exit(main())
