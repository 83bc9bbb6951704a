"""Find, certify and export precision plans: profile -> learn -> compare -> certify -> export -> report.

Run ``python train.py --help`` for the settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline.cli import main, one_line_errors, resumed_arguments
from pipeline.run_folder import RunFolder


def run(config: DictConfig) -> None:
    """Train; torch and the rest are imported only once the settings are known to be sound."""
    from pipeline.progress import make_console
    from pipeline.settings import training_settings
    from pipeline.training_run import TrainingRun

    hydra = HydraConfig.get().runtime
    folder = RunFolder(Path(hydra.output_dir))
    folder.claim(resumed=config.resume is not None)
    with folder.discarded_on_failure():
        settings = training_settings(config, hydra.choices["workload"])
        TrainingRun(settings, folder, make_console()).run()
    folder.publish(Path("outputs"))


if __name__ == "__main__":
    with one_line_errors():
        sys.argv[1:] = resumed_arguments(sys.argv[1:])
    main("train", run)
