"""``python -m wattbit.audit``."""

import sys

from wattbit.audit.log import main

if __name__ == "__main__":
    sys.exit(main())
