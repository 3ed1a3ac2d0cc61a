"""``python -m polylight`` is ``polylight``."""

import sys

from polylight.cli import main

if __name__ == "__main__":
    sys.exit(main())
