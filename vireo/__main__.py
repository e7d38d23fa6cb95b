"""``python -m vireo``."""

import sys

from vireo.cli import main

if __name__ == "__main__":
    sys.exit(main())
