"""Find, certify and export precision plans: profile -> learn -> compare -> certify -> export -> report.

Run ``python train.py --help`` for the settings.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pipeline.cli import main, one_line_errors
from pipeline.run_folder import resumed_arguments


def run(config: DictConfig) -> None:
    """Train; torch and the rest are imported only once the settings are known to be sound."""
    from pipeline.training_run import train

    train(config)


if __name__ == "__main__":
    with one_line_errors():
        sys.argv[1:] = resumed_arguments(sys.argv[1:])
    main("train", run)
