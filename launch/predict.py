"""Predict images with a bundle or run, as one rank of Accelerate.

accelerate launch launch/predict.py BUNDLE|RUN IMAGES... -o FILE
"""

import sys

from choral.deploy.bundle.ranks import main

if __name__ == "__main__":
    sys.exit(main())
