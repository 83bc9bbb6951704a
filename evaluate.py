"""Judge a bundle, or a plan that any tool made, on data that no search has seen.

Run ``python evaluate.py --help`` for the settings.
"""

from __future__ import annotations

from omegaconf import DictConfig

from pipeline.cli import main


def run(config: DictConfig) -> None:
    """Evaluate; torch and the rest are imported only once the settings are known to be sound."""
    from pipeline.evaluation_run import evaluate
    from pipeline.settings import evaluation_settings

    evaluate(evaluation_settings(config))


if __name__ == "__main__":
    main("evaluate", run)
