"""``python -m backprop_gpu`` is the command ``backprop-gpu``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
