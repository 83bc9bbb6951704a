"""A network with the weights that training gives it, from the cache where they are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from workloads import classifier_training as training
from workloads.cache import cached_state_dict, source_of
from workloads.workload import Split

_log = logging.getLogger(__name__)


def trained_classifier(
    name: str,
    make: Callable[[], nn.Module],
    split: Split,
    cache_dir: str | Path,
    hyperparameters: Mapping[str, Any],
    /,
    *definitions: type | Callable[..., Any] | ModuleType,
    augment: training.Augment | None = None,
    progress: training.Progress | None = None,
    **key_parts: Any,
) -> nn.Module:
    """Make a network and train it, unless the cache has its weights; in eval mode.

    Args:
        name: The workload's name.
        make: Makes the network, of the seed alone.
        split: Samples to train on.
        cache_dir: Folder of the cache.
        hyperparameters: Arguments of `training.train_classifier`, the seed among them.
        definitions: What else than ``make`` and the training decides the result, by its source.
        augment: See `training.train_classifier`.
        progress: Likewise; None for a training too short to speak of.
        key_parts: Further values that decide the result; one named as a part of the key replaces it.

    Raises:
        OutputError: If the weights cannot be kept.
    """
    seed = hyperparameters["seed"]

    def train() -> nn.Module:
        if progress is not None:
            _log.info("training the %s model, %d epochs", name, hyperparameters["epochs"])
        return training.train_classifier(
            training.seeded(make, seed),
            split,
            augment=augment,
            progress=progress,
            **hyperparameters,
        )

    key = {
        "workload": name,
        "hyperparameters": dict(hyperparameters),
        "data": split.fingerprint(),
        "source": source_of(make, *definitions, training),
        **key_parts,
    }
    model = training.seeded(make, seed)
    model.load_state_dict(cached_state_dict(cache_dir, key, train))
    return model.eval()
