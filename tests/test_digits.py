"""The digits workload and the training behind it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, fx, nn

from wattbit.errors import ConfigError, DataError, ModelError
from wattbit.model_inputs import Inputs, predict
from workloads import digits
from workloads.classifier_training import seeded, shift_images, train_classifier
from workloads.workload import SPLITS, Split, Workload

CONFIG = Path(__file__).parents[1] / "conf" / "workload" / "digits.yaml"
HYPERPARAMETERS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "seed": 0,
}


def settings(cache_dir: Path, **changes: Any) -> dict[str, Any]:
    """The arguments in the configuration file, with ``changes``."""
    config = yaml.safe_load(CONFIG.read_text())
    assert config.pop("_target_") == "workloads.digits.load"
    return {**config, "seed": 0, "cache_dir": str(cache_dir), **changes}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workload(cache_dir: Path) -> Workload:
    return digits.load(**settings(cache_dir))


def accuracy(workload: Workload, name: str) -> float:
    split = workload.splits[name]
    return float((predict(workload.model, split.inputs, 200).argmax(1) == split.labels).float().mean())


def test_the_configuration_has_exactly_the_arguments_of_load(tmp_path: Path) -> None:
    assert set(settings(tmp_path)) == set(inspect.signature(digits.load).parameters)


def test_the_trained_model_is_right_on_97_percent_of_digits_it_has_not_seen(workload: Workload) -> None:
    held_out = [name for name in SPLITS if name != "train"]
    samples = sum(len(workload.splits[name]) for name in held_out)
    right = sum(accuracy(workload, name) * len(workload.splits[name]) for name in held_out)
    assert right / samples >= 0.97


def test_the_splits_have_their_sizes_and_share_no_sample(workload: Workload) -> None:
    assert {name: len(split) for name, split in workload.splits.items()} == {
        "train": 500,
        "calibrate": 97,
        "search": 400,
        "certify": 600,
        "test": 200,
    }
    images = torch.cat([split.inputs for split in workload.splits.values()])  # type: ignore[misc]
    # Of the 1,797 images none is there twice.
    assert len(torch.unique(images, dim=0)) == len(torch.unique(digits.read_digits()[0], dim=0)) == 1797


def test_a_second_load_does_not_train_and_gives_the_same_bits(
    workload: Workload, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("trained again")

    monkeypatch.setattr(torch.optim, "SGD", refuse)
    again = digits.load(**settings(cache_dir)).model.state_dict()
    for name, tensor in workload.model.state_dict().items():
        assert torch.equal(tensor, again[name])
    with pytest.raises(RuntimeError, match="trained again"):
        digits.load(**settings(cache_dir, seed=1))


def test_loading_leaves_the_global_random_state_alone(workload: Workload, cache_dir: Path) -> None:
    before = torch.random.get_rng_state()
    assert digits.load(**settings(cache_dir)).name == workload.name
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_network_can_be_traced_and_offers_varied_layers(workload: Workload) -> None:
    layers = [m for m in workload.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert 8 <= len(layers) <= 12
    assert any(layer.groups == layer.in_channels > 1 for layer in convolutions)
    assert any(layer.kernel_size == (1, 1) and layer.stride == (2, 2) for layer in convolutions)
    assert 10_000 <= sum(p.numel() for p in workload.model.parameters()) <= 40_000
    inputs = workload.splits["test"].inputs
    assert isinstance(inputs, Tensor)
    with torch.inference_mode():
        assert torch.equal(fx.symbolic_trace(workload.model)(inputs), workload.model(inputs))


def test_splits_that_do_not_fit_the_1797_digits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have 1797"):
        digits.load(**settings(tmp_path, search=5000))


def small_split(samples: int = 50) -> Split:
    images, labels = digits.read_digits()
    return Split(images[:samples], labels[:samples])


def state(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def test_training_depends_on_the_seed_alone_and_leaves_the_global_random_state() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        model = seeded(with_dropout, seed)
        arguments = {**HYPERPARAMETERS, "seed": seed, "shift_pixels": 1}
        trained.append(train_classifier(model, small_split(), **arguments))
        assert torch.equal(torch.random.get_rng_state(), before)
    torch.set_num_threads(threads)
    assert equal(trained[0], trained[1])
    assert not equal(trained[0], trained[2])


def test_training_returns_the_model_in_eval_mode_and_in_the_usual_memory_layout() -> None:
    model = train_classifier(digits.DigitsNet(), small_split(), **HYPERPARAMETERS)
    assert not any(module.training for module in model.modules())
    assert all(tensor.is_contiguous() for tensor in state(model))


def test_training_tells_of_every_epoch() -> None:
    told: list[tuple[int, int, float]] = []
    arguments = {**HYPERPARAMETERS, "epochs": 12, "progress": lambda *report: told.append(report)}
    train_classifier(seeded(digits.DigitsNet, 0), small_split(), **arguments)
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(epoch, 12) for epoch in range(1, 13)]
    assert told[-1][2] < told[0][2]


@pytest.mark.parametrize(("samples", "batch_size"), [(50, 16), (64, 16), (17, 16), (5, 16), (2, 2)])
def test_any_number_of_samples_and_steps_can_be_trained_on(samples: int, batch_size: int) -> None:
    for epochs in (1, 4):
        arguments = {**HYPERPARAMETERS, "batch_size": batch_size, "epochs": epochs}
        model = train_classifier(digits.DigitsNet(), small_split(samples), **arguments)
        assert all(bool(tensor.isfinite().all()) for tensor in state(model))


def test_a_model_with_named_inputs_can_be_trained() -> None:
    class Named(nn.Module):
        """Takes a dict of inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, *, pixels: Tensor) -> tuple[Tensor]:
            """Return the logits in a tuple."""
            return (self.head(pixels.flatten(1)),)

    split = small_split()
    named = Split({"pixels": split.inputs}, split.labels)
    assert not train_classifier(Named(), named, **HYPERPARAMETERS).training


def test_training_that_diverges_says_so_in_one_line() -> None:
    arguments = {**HYPERPARAMETERS, "learning_rate": 1e30, "epochs": 5}
    with pytest.raises(ModelError) as error:
        train_classifier(with_dropout(), small_split(), **arguments)
    assert "lower learning_rate" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_the_model_has_no_logit_for_is_refused(label: int) -> None:
    split = Split(small_split().inputs, torch.full((50,), label))
    with pytest.raises(DataError, match=f"label {label} .* 0 to 9"):
        train_classifier(with_dropout(), split, **HYPERPARAMETERS)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 1}])
def test_settings_that_cannot_train_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        train_classifier(with_dropout(), small_split(), **{**HYPERPARAMETERS, **change})


def augmented(inputs: Inputs) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def test_shifting_moves_images_and_repeats_their_border() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3).repeat(200, 2, 1, 1)
    shifted = augmented(shift_images(image, 1, torch.Generator().manual_seed(0)))
    kinds = torch.unique(shifted[:, 0], dim=0)
    assert len(kinds) == 9
    assert torch.tensor([[0.0, 0, 1], [0, 0, 1], [3, 3, 4]]).tolist() in kinds.tolist()
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    assert torch.equal(augmented(shift_images(image, 0, torch.Generator())), image)
