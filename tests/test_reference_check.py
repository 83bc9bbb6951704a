"""What a model's outputs predict, whatever their shape; and what is refused before anything is profiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from messages import one_line
from shaped import workload

from pipeline.reference_check import check_reference
from wattbit.errors import DataError, ModelError
from wattbit.model_inputs import logits_of
from wattbit.profiling.sensitivity import divergence
from wattbit.serving.shadow import disagreement


@pytest.mark.parametrize("shape", [lambda y: y, lambda y: y.squeeze(1), lambda y: y[:, :, None, None]])
def test_the_sign_of_one_logit_decides(shape: Any) -> None:
    check = check_reference(workload(shape, outputs=1))
    assert set(check.accuracy.values()) == {1.0}
    assert not check.warnings


def test_plans_of_a_model_of_one_logit_are_told_apart() -> None:
    z = torch.linspace(-3, 3, 7).unsqueeze(1)
    reference, plan = logits_of(z), logits_of(z + 1.0)
    p, q = torch.sigmoid(z).squeeze(1), torch.sigmoid(z + 1.0).squeeze(1)
    bernoulli = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(divergence(reference.log_softmax(1), plan), bernoulli, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 1, 1, 1), (6, 1, 3, 3)])
def test_the_shadow_sees_one_logit_change_its_sign(shape: tuple[int, ...]) -> None:
    z = torch.ones(shape)
    other = z.clone()
    other[2] = -1.0
    assert disagreement(other, z) == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    "shape",
    [
        lambda y: (y.mean(), y),
        lambda y: (y.mean(), y, y.exp()),
        lambda y: {"loss": y.mean(), "logits": y},
        lambda y: {"logits": (y, y)},
        lambda y: y[:, :, None, None],
        lambda y: y.double(),
    ],
)
def test_a_loss_is_not_taken_for_the_logits(shape: Any) -> None:
    assert set(check_reference(workload(shape, 3, 3)).accuracy.values()) == {1.0}


def test_a_model_that_autocasts_is_run_as_it_is_and_said_to() -> None:
    made = workload(lambda y: y)

    class Casting(type(made.model)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    made.model.__class__ = Casting
    assert any("autocasts" in warning for warning in check_reference(made).warnings)
    assert not check_reference(workload(lambda y: y)).warnings


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (lambda y: y[:, None], "(25, 1, 3)"),
        (lambda y: y[:, :, None, None].expand(-1, -1, 2, 2), "(25, 3, 2, 2)"),
        (lambda y: y[:, :, None].expand(-1, -1, 2), "(25, 3, 2)"),
        (lambda y: y[:7], "(7, 3)"),
        (lambda y: torch.cat([y, y], 1), "(25, 6)"),
        (lambda y: y.sum(), "()"),
        (lambda y: y[:, :1], "(25, 1)"),
    ],
)
def test_another_shape_is_refused_with_the_shape_needed(shape: Any, found: str) -> None:
    with pytest.raises(DataError) as error:
        check_reference(workload(shape, 3, 3))
    assert f"shape {found} for 25 samples" in one_line(error)
    assert "needed is (25, 3)" in one_line(error)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda y: y.argmax(1), "torch.int64"),
        (lambda y: y > 0, "torch.bool"),
        (lambda y: y / 0.0, "NaN or infinite values in 25 of 25"),
        (lambda y: (y[:, 0], y), "either of which could be the logits"),
        (lambda y: {"out": y}, "holds no logits"),
        (lambda y: None, "NoneType"),
        (lambda y: y @ y, "cannot be run"),
    ],
)
def test_outputs_that_are_no_finite_logits_are_refused_in_one_line(shape: Any, said: str) -> None:
    with pytest.raises(ModelError) as error:
        check_reference(workload(shape, 3, 3))
    assert said in one_line(error)
