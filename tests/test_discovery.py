"""Finding switchable layers by running the model: only what really runs, folding only what really folds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from attached import unpatched
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

from wattbit.errors import ModelError
from wattbit.execution.discovery import FoundLayer, find_layers, foldable, require_finite_weights
from wattbit.execution.kernels.layer_weights import is_switchable, take_weights
from wattbit.execution.layer_uses import watch_uses


def discovered(model: nn.Module, x: Any) -> tuple[FoundLayer, ...]:
    model.eval()
    return foldable(model, x, find_layers(model, x), watch_uses(model, x))


def folded(model: nn.Module, x: Any) -> dict[str, bool]:
    return {found.shape.name: found.batch_norm is not None for found in discovered(model, x)}


def trained_norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm that does something."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


class Block(nn.Module):
    """A convolution and a BatchNorm, used as ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.other = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = trained_norm(2)
        self.other_norm = trained_norm(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "keywords":
            out: Tensor = self.norm(input=self.conv(input=x))
            return out.mean((2, 3))
        y = self.conv(x)
        match self.how:
            case "plain":
                out = self.norm(y)
            case "read elsewhere":
                out = self.norm(y) + y
            case "function between":
                out = self.norm(F.relu(y))
            case "written in place between":
                out = self.norm(F.relu_(y))
            case "norm of the input too":
                out = self.norm(y) + self.norm(x)
            case "norm shared":
                out = self.norm(y) + self.norm(self.other(x))
            case "two norms":
                out = self.norm(y) + self.other_norm(y)
            case "norm skipped once":
                out = self.norm(y) + self.conv(y)
            case "norm changes":
                out = self.norm(y) + self.other_norm(self.conv(y))
            case "block twice":
                out = self.norm(self.conv(self.norm(y)))
            case "norm before":
                out = self.conv(self.norm(x))
        return out.mean((2, 3))


IMAGES = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", ["plain", "keywords", "block twice"])
def test_a_batch_norm_that_only_follows_one_convolution_is_folded(how: str) -> None:
    assert folded(Block(how), IMAGES)["conv"]


@pytest.mark.parametrize(
    "how",
    [
        "read elsewhere",
        "function between",
        "written in place between",
        "norm of the input too",
        "norm shared",
        "two norms",
        "norm skipped once",
        "norm changes",
        "norm before",
    ],
)
def test_a_batch_norm_that_cannot_be_folded_is_left_alone(how: str) -> None:
    assert not any(folded(Block(how), IMAGES).values())


def test_a_value_written_in_place_is_told_apart_even_if_the_output_hides_it() -> None:
    # Nothing downstream reads the block yet (a zero-initialised branch), so the output cannot tell.
    block = Block("written in place between").eval()

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            still: Tensor = 0.0 * self.block(x)
            return x.mean((2, 3)) + still

    assert not any(folded(Silent(), IMAGES).values())


def test_one_unfoldable_batch_norm_does_not_keep_others_from_folding() -> None:
    model = nn.ModuleDict({"bad": Block("read elsewhere"), "good": Block("plain")})
    model.forward = lambda x: model["bad"](x) + model["good"](x)
    try:
        assert folded(model, IMAGES) == {"bad.conv": False, "good.conv": True}
    finally:
        del model.forward


def test_folding_reproduces_the_convolution_and_its_batch_norm() -> None:
    norm = trained_norm(4)
    for conv in (nn.Conv2d(2, 4, 3, bias=True), nn.Conv2d(2, 4, 3, bias=False)):
        weights = take_weights(conv, norm.eval())
        expected = norm(conv(IMAGES))
        torch.testing.assert_close(weights.apply(IMAGES, weights.weight), expected, atol=1e-5, rtol=1e-5)


def test_a_batch_norm_without_scale_and_shift_is_folded_too() -> None:
    conv, norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False).eval()
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2.0)
    weights = take_weights(conv, norm)
    torch.testing.assert_close(
        weights.apply(IMAGES, weights.weight), norm(conv(IMAGES)), atol=1e-5, rtol=1e-5
    )


def test_a_batch_norm_without_running_statistics_is_not_folded() -> None:
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)
    model = nn.Sequential(conv, norm, nn.Flatten())
    assert folded(model, IMAGES) == {"0": False}
    with pytest.raises(ValueError, match="running statistics"):
        take_weights(conv, norm)


def test_a_batch_norm_with_an_activation_in_it_is_not_folded() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return torch.relu(super().forward(input))

    model = nn.Sequential(nn.Conv2d(2, 2, 1), NormAct(2), nn.Flatten())
    assert folded(model, IMAGES) == {"0": False}


# --- which layers -----------------------------------------------------------------------------------------


def test_layers_come_in_execution_order_with_their_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 5)
            self.wide = nn.Conv2d(2, 6, (3, 1), stride=(1, 2))
            self.depthwise = nn.Conv2d(6, 12, 2, groups=6)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.depthwise(self.wide(x)).mean((2, 3)))
            return logits

    wide, depthwise, head = (found.shape for found in discovered(Net(), IMAGES))
    assert [wide.name, depthwise.name, head.name] == ["wide", "depthwise", "head"]
    assert [wide.kind, depthwise.kind, head.kind] == ["conv2d", "depthwise_conv2d", "linear"]
    assert [wide.depth, depthwise.depth, head.depth] == [0.0, 0.5, 1.0]
    # 5 x 5 becomes 3 x 3, of 6 channels; each output sums 3 rows of 2 channels.
    assert (wide.macs, wide.weight_elements) == (6 * 3 * 3 * 6, 6 * 6)
    assert (wide.input_elements, wide.output_elements) == (2 * 25, 6 * 9)
    assert (wide.in_channels, wide.out_channels, wide.groups) == (2, 6, 1)
    assert (wide.kernel_size, wide.stride) == (3, 2)
    assert (depthwise.groups, depthwise.kernel_size) == (6, 2)
    assert (depthwise.macs, head.macs) == (12 * 4 * 4, 60)


def test_a_shared_layer_is_found_once_with_the_work_of_both_calls() -> None:
    shared = nn.Linear(4, 4)
    found = discovered(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 4))
    assert [layer.shape.name for layer in found] == ["0"]
    assert found[0].shape.macs == 2 * 16
    assert found[0].shape.depth == 0.0


def test_layers_that_a_fused_encoder_bypasses_are_not_claimed() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(8, 8), encoder, nn.Flatten(), nn.Linear(24, 5))
    names = [layer.shape.name for layer in discovered(model, torch.randn(2, 3, 8))]
    assert names == ["0", "3"]


def test_the_layers_of_an_encoder_that_runs_step_by_step_are_claimed() -> None:
    # batch_first=False has no fused path.
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 5))
    names = [layer.shape.name for layer in discovered(model, torch.randn(2, 3, 8))]
    assert names == ["0.linear1", "0.linear2", "2"]


def test_a_layer_that_runs_once_a_batch_has_some_work() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position, self.head = nn.Linear(1, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x + self.position(torch.ones(1)))
            return logits

    position = discovered(Net(), torch.randn(8, 3))[0].shape
    assert (position.macs, position.input_elements, position.output_elements) == (1, 1, 1)


class OwnForward(nn.Linear):
    """Computes something else than a linear layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


class OwnPadding(nn.Conv2d):
    """Pads in its own way, as TensorFlow does."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), weight, bias, self.stride, self.padding)


class Renamed(nn.Linear):
    """A subclass that computes nothing of its own."""


@pytest.mark.parametrize(
    ("module", "switchable"),
    [
        (nn.Linear(2, 2), True),
        (Renamed(2, 2), True),
        (OwnForward(2, 2), False),
        (nn.Conv2d(2, 2, 1), True),
        (OwnPadding(2, 2, 3), False),
        (nn.Conv2d(2, 2, 3, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv1d(2, 2, 1), False),
        (nn.ConvTranspose2d(2, 2, 1), False),
        (nn.Bilinear(2, 2, 2), False),
    ],
)
def test_only_modules_whose_arithmetic_is_known_can_switch(module: nn.Module, switchable: bool) -> None:
    assert is_switchable(module) == switchable


def test_parametrized_layers_switch_with_the_weight_they_compute() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    found = discovered(nn.Sequential(layer), torch.randn(2, 4))
    assert found[0].shape.weight_elements == 12
    assert torch.equal(take_weights(found[0].module).weight, layer.weight)


def test_pruned_layers_switch_with_their_pruned_weight() -> None:
    layer = nn.Linear(4, 3)
    l1_unstructured(layer, "weight", 6)  # type: ignore[no-untyped-call]
    model = nn.Sequential(layer)
    discovered(model, torch.randn(2, 4))
    assert int((take_weights(layer).weight == 0).sum()) == 6


# --- what is refused --------------------------------------------------------------------------------------


def test_a_model_without_switchable_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="the model runs 0 switchable layers, needs at least 1"):
        discovered(nn.Sequential(nn.Flatten(), nn.ReLU()), IMAGES)


def test_layers_that_never_run_do_not_count() -> None:
    model = nn.ModuleDict({"unused": nn.Linear(2, 2)})
    model.forward = lambda x: x
    with pytest.raises(ModelError, match="0 switchable layers"):
        find_layers(model, IMAGES)


def test_a_model_that_is_one_layer_is_told_how_to_get_a_name() -> None:
    with pytest.raises(ModelError, match=r"is itself a single layer, which has no name .* nn.Sequential"):
        discovered(nn.Linear(2, 2), torch.randn(3, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision_than_the_reference_is_refused(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).to(dtype)
    with pytest.raises(ModelError, match=f"'0' has {dtype} weights, .* call model.float()"):
        discovered(model, torch.randn(3, 2, dtype=dtype))


def test_an_empty_example_is_refused() -> None:
    with pytest.raises(ModelError, match="the example batch holds 0 samples"):
        discovered(nn.Sequential(nn.Linear(2, 2)), torch.randn(0, 2))


def test_a_model_that_returns_no_logits_is_refused_and_left_as_it_was() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> str:
            return str(self.layer(x))

    model = Strange()
    with pytest.raises(ModelError, match="returns str, which holds no logits"):
        discovered(model, torch.randn(3, 2))
    assert unpatched(model)


def test_nothing_stays_patched_after_the_model_fails(conv_model: tiny.ConvNet) -> None:
    with pytest.raises(RuntimeError):
        find_layers(conv_model, torch.randn(2, 3, 8, 8))
    assert unpatched(conv_model)


def test_nothing_stays_patched_after_success(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with torch.inference_mode():
        expected = conv_model(conv_inputs)
        discovered(conv_model, conv_inputs)
        assert torch.equal(conv_model(conv_inputs), expected)
    assert unpatched(conv_model)


def test_discovery_finds_the_same_in_inference_mode(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    outside = folded(conv_model, conv_inputs)
    with torch.inference_mode():
        assert folded(conv_model, conv_inputs.clone()) == outside
    assert outside == {"stem": True, "depthwise": True, "pointwise": False, "head": False}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_and_statistics_that_are_not_finite_are_named(conv_model: tiny.ConvNet, bad: float) -> None:
    conv_model.head.weight.data[0, 3] = bad
    with pytest.raises(ModelError, match=r"head.weight holds 1 NaN or infinite of 80 values, allowed is 0"):
        require_finite_weights(conv_model)
    conv_model.head.weight.data.zero_()
    assert conv_model.stem_bn.running_var is not None
    conv_model.stem_bn.running_var[2:4] = bad
    with pytest.raises(ModelError, match=r"stem_bn.running_var holds 2 NaN or infinite of 8"):
        require_finite_weights(conv_model)


def test_integer_buffers_are_no_trouble() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("index", torch.arange(3))
    require_finite_weights(model)


def test_weights_without_values_are_named() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(2, 2))
    lazy = nn.Sequential(nn.LazyLinear(2))
    for model in (empty, lazy):
        with pytest.raises(ModelError, match=r"0.weight holds no values .* load the weights first"):
            require_finite_weights(model)
