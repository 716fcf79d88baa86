"""`python -m smollm3`, for where the console script is not on the path."""

import sys

from smollm3.command_line import main

if __name__ == "__main__":
    sys.exit(main())
