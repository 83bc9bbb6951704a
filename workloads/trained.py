"""A network with the weights that training gives it, from the cache where they are there."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from workloads.cache import cached_state_dict, source_of
from workloads.classifier_training import EpochProgress, seeded, train_classifier
from workloads.workload import Split

_log = logging.getLogger(__name__)


def trained_network(
    make: Callable[[], nn.Module],
    split: Split,
    cache_dir: str | Path,
    progress: EpochProgress | None = None,
    *,
    train: Callable[..., nn.Module] = train_classifier,
    pretrained: Callable[[int], nn.Module] | None = None,
    sources: Sequence[ModuleType] = (),
    epochs: int,
    seed: int,
    **hyperparameters: float,
) -> nn.Module:
    """Make a network and train it, unless the cache has its weights; in eval mode.

    Weights are found again only if all that decides them is the same: the network as it prints itself, the
    hyper-parameters, the samples, and the code of the modules that define the network's classes, ``make``,
    ``train`` and ``pretrained``.

    Args:
        make: Makes the network with random weights.
        split: Samples to train on.
        cache_dir: Folder of the cache.
        progress: Told of each finished epoch; None for a training too short to speak of.
        train: What trains: takes the network, the samples, ``progress`` and the hyper-parameters.
        pretrained: Makes the network that training starts from, of the seed; None: with random weights.
        sources: Other modules whose code decides the weights.
        epochs: A hyper-parameter of ``train``.
        seed: Another; fixes the random weights as well.
        hyperparameters: The others.

    Raises:
        OutputError: If the weights cannot be kept.
    """
    model = seeded(make, seed)
    settings = {"epochs": epochs, "seed": seed, **hyperparameters}

    def build() -> nn.Module:
        if progress is not None:
            _log.info("training %s, %d epochs", type(model).__name__, epochs)
        start = seeded(make, seed) if pretrained is None else pretrained(seed)
        return train(start, split, progress=progress, **settings)

    parts = [
        make,
        train,
        *([pretrained] if pretrained else []),
        *{type(module) for module in model.modules()},
    ]
    modules = {module for part in parts if (module := inspect.getmodule(part)) is not None}
    own = sorted({*modules, *sources}, key=lambda module: module.__name__)
    key = {
        "network": repr(model),
        "hyperparameters": settings,
        "data": split.fingerprint(),
        "source": source_of(*(module for module in own if not module.__name__.startswith("torch."))),
    }
    model.load_state_dict(cached_state_dict(cache_dir, key, build))
    return model.eval()
