"""``python -m featx`` is the command ``featx``."""

import sys

from featx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
