"""Find, certify and export precision plans: profile -> learn -> compare -> certify -> export -> report.

Run ``python train.py --help`` for the settings.
"""

from __future__ import annotations

import sys

from scripts.entry import main, one_line_errors
from scripts.run_folder import resumed_arguments

if __name__ == "__main__":
    with one_line_errors():
        sys.argv[1:] = resumed_arguments(sys.argv[1:])
    from scripts.training import train

    main("train", train)
