"""The numpy policy: deterministic bytes, no pickle, no masked action, no NaN."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wattbit.features import Context, FeatureEncoder
from wattbit.policy import MLPPolicy
from wattbit.profile import ModelProfile


def policy(seed: int = 0, hidden: int = 8) -> MLPPolicy:
    return tiny.random_policy(tiny.profile(), hidden, seed)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def arrays_of(one: MLPPolicy) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(one.to_bytes())) as file:
        return {name: file[name] for name in file.files}


@given(seed=st.integers(0, 1000), hidden=st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_a_policy_survives_its_file_and_equal_policies_have_equal_bytes(seed: int, hidden: int) -> None:
    one = policy(seed, hidden)
    read = MLPPolicy.from_bytes(one.to_bytes())
    assert read.to_bytes() == one.to_bytes() == policy(seed, hidden).to_bytes()
    assert (read.precisions, read.pp_per_nat) == (one.precisions, one.pp_per_nat)
    for a, b in zip((*read.weights, *read.biases), (*one.weights, *one.biases), strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == np.float32


def test_different_policies_have_different_bytes() -> None:
    assert policy(0).to_bytes() != policy(1).to_bytes()


def test_logits_are_those_of_the_same_network_in_torch() -> None:
    one = policy()
    first, last = (torch.nn.Linear(w.shape[1], w.shape[0]) for w in one.weights)
    for layer, weight, bias in zip((first, last), one.weights, one.biases, strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    x = np.random.default_rng(0).normal(size=(6, one.observation_size)).astype(np.float32)
    expected = last(torch.tanh(first(torch.from_numpy(x)))).detach().numpy()
    np.testing.assert_allclose(one.logits(x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.logits(x[0]), expected[0], rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 200), mask=st.lists(st.booleans(), min_size=5, max_size=5).filter(any))
@settings(deadline=None, max_examples=100)
def test_a_masked_action_is_never_chosen(seed: int, mask: list[bool]) -> None:
    observation = np.random.default_rng(seed).normal(size=policy().observation_size).astype(np.float32) * 100
    allowed = np.array(mask)
    action = policy(seed).act(observation, allowed)
    assert allowed[action]
    logits = policy(seed).logits(observation)
    assert logits[action] == logits[allowed].max()


def test_a_mask_that_allows_nothing_is_refused() -> None:
    one = policy()
    with pytest.raises(ValueError, match="the mask allows 0 actions, needs at least 1"):
        one.act(np.zeros(one.observation_size, np.float32), np.zeros(5, bool))


def test_a_proposal_is_a_plan_for_the_profile_and_always_the_same(profile: ModelProfile) -> None:
    encoder = FeatureEncoder(profile, 20.0)
    plan = policy().propose(encoder, Context(1.0))
    assert profile.require_plan(plan) == plan
    assert MLPPolicy.from_bytes(policy().to_bytes()).propose(encoder, Context(1.0)) == plan


def test_a_policy_for_other_precisions_is_refused(profile: ModelProfile) -> None:
    other = replace(policy(), precisions=("fp32", "bf16", "int8", "int4", "int2"))
    with pytest.raises(
        ValueError, match="policy was trained for fp32, bf16, int8, int4, int2; this profile has"
    ):
        other.propose(FeatureEncoder(profile, 20.0), Context(1.0))


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    for name in ("weights", "biases"):
        arrays = [array.copy() for array in getattr(policy(), name)]
        arrays[1][..., 0] = bad
        changed: dict[str, Any] = {name: tuple(arrays)}
        with pytest.raises(ValueError, match="policy holds NaN or infinite weights"):
            replace(policy(), **changed)
    with pytest.raises(ValueError, match="policy has pp_per_nat"):
        replace(policy(), pp_per_nat=bad)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (), "biases": ()},
        {"precisions": ("fp32",)},
        {"weights": policy().weights[::-1]},
        {"biases": policy().biases[::-1]},
        {"biases": policy().biases[:1]},
        {"weights": (policy().weights[0][0], policy().weights[1])},
        {"pp_per_nat": -1.0},
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(policy(), **change)


def test_a_pickle_is_never_opened() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            raise AssertionError("unpickled")

    objects = np.empty(1, object)
    objects[0] = [1, 2]
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays_of(policy()), "weight_0": objects}, allow_pickle=True)
    for data in (buffer.getvalue(), b"\x80\x04\x95"):
        with pytest.raises(ValueError):
            MLPPolicy.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        npz(),
        npz(schema=np.array(2)),
        npz(**{name: array for name, array in arrays_of(policy()).items() if name != "bias_1"}),
        npz(**{**arrays_of(policy()), "weight_0": np.array(["a", "b"])}),
        npz(**{**arrays_of(policy()), "weight_7": np.zeros((2, 2))}),
        npz(**{**arrays_of(policy()), "pp_per_nat": np.array([1.0, 2.0])}),
        npz(**{**arrays_of(policy()), "precisions": np.array(3)}),
        np.lib.format.magic(1, 0) + b"\x06\x00{'a':\n",
    ],
)
def test_what_is_no_policy_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError) as error:
        MLPPolicy.from_bytes(data)
    assert len(str(error.value).splitlines()) == 1


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_with_any_byte_changed_is_a_policy_or_refused(data: st.DataObject) -> None:
    content = bytearray(policy().to_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    try:
        assert isinstance(MLPPolicy.from_bytes(bytes(content[:end])), MLPPolicy)
        return
    except ValueError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


def test_the_file_is_an_archive_that_numpy_reads() -> None:
    content = policy().to_bytes()
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    assert set(arrays_of(policy())) == {
        "schema", "precisions", "pp_per_nat", "weight_0", "bias_0", "weight_1", "bias_1",
    }  # fmt: skip
