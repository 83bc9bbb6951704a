"""The learned policy in numpy: what a serving process runs in place of the training library."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.features import Context, FeatureEncoder, Mask, Observation, PlanBuilder
from wattbit.plan import PrecisionPlan
from wattbit.storage.npz import read_npz

POLICY_SCHEMA = 1

_MOST_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class MLPPolicy:
    """A multilayer perceptron with tanh hidden layers and one logit per precision.

    Attributes:
        weights: One (out, in) float32 matrix per layer, the first reads the observation.
        biases: One (out,) float32 vector per layer.
        precisions: The precision each logit stands for.
        pp_per_nat: The feature encoder's constant at training time.
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    precisions: tuple[str, ...]
    pp_per_nat: float

    def __post_init__(self) -> None:
        widths = [self.weights[0].shape[-1]] if self.weights else []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if weight.ndim != 2 or weight.shape[1] != widths[-1] or bias.shape != (weight.shape[0],):
                raise ValueError(
                    f"policy layer of shape {weight.shape} does not follow a width of {widths[-1]}"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError("policy holds NaN or infinite weights")
            widths.append(weight.shape[0])
        if not math.isfinite(self.pp_per_nat) or self.pp_per_nat < 0.0:
            raise ValueError(f"policy has pp_per_nat {self.pp_per_nat}, must be a finite number, 0 or more")
        if not widths or widths[-1] != len(self.precisions):
            raise ValueError(f"policy must end in {len(self.precisions)} logits, one per precision")

    @property
    def observation_size(self) -> int:
        """Length of the observation it reads."""
        return int(self.weights[0].shape[1])

    def logits(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unmasked logits, (..., precisions), of observations (..., observation_size)."""
        x = observation
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.tanh(x @ weight.T + bias)
        y: NDArray[np.float32] = x @ self.weights[-1].T + self.biases[-1]
        return y

    def act(self, observation: Observation, mask: Mask) -> int:
        """The most probable action among those that ``mask`` allows.

        Raises:
            ValueError: If it allows none.
        """
        if not mask.any():
            raise ValueError("the mask allows 0 actions, needs at least 1")
        return int(np.where(mask, self.logits(observation), -np.inf).argmax())

    def propose(self, encoder: FeatureEncoder, context: Context) -> PrecisionPlan:
        """The plan that the most probable actions lead to. A proposal: nothing has certified it.

        Raises:
            ValueError: If the encoder's profile has other precisions or features than the policy knows.
        """
        if encoder.profile.precisions != self.precisions or encoder.size != self.observation_size:
            raise ValueError(
                f"policy was trained for {', '.join(self.precisions)}; "
                f"this profile has {', '.join(encoder.profile.precisions)}"
            )
        builder = PlanBuilder(encoder, context)
        while not builder.done:
            builder.assign(self.act(builder.observation, builder.mask))
        return builder.plan

    def to_bytes(self) -> bytes:
        """The policy as an ``.npz`` file, free of pickles and equal for equal policies."""
        arrays: dict[str, NDArray[Any]] = {
            "schema": np.array(POLICY_SCHEMA),
            "precisions": np.array(self.precisions),
            "pp_per_nat": np.array(self.pp_per_nat),
        }
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"weight_{index}"], arrays[f"bias_{index}"] = weight, bias
        return _write_npz(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> MLPPolicy:
        """Read a policy written by `to_bytes`.

        Raises:
            ValueError: If the data is not such a file.
        """
        try:
            arrays = read_npz(data, _MOST_BYTES)
            count = (len(arrays) - 3) // 2
            names = [f"{kind}_{index}" for index in range(count) for kind in ("weight", "bias")]
            if set(arrays) != {"schema", "precisions", "pp_per_nat", *names}:
                raise ValueError(f"it has the arrays {', '.join(sorted(arrays)):.120}")
            if any(arrays[name].dtype != np.float32 for name in names):
                raise ValueError("its weights must be float32")
            shapes = [arrays[name].ndim for name in ("schema", "precisions", "pp_per_nat")]
            kinds = [arrays[name].dtype.kind for name in ("schema", "precisions", "pp_per_nat")]
            if shapes != [0, 1, 0] or kinds != ["i", "U", "f"] or int(arrays["schema"]) != POLICY_SCHEMA:
                raise ValueError(f"policy schema {arrays['schema']!r:.80} is not {POLICY_SCHEMA}")
            return cls(
                weights=tuple(arrays[f"weight_{i}"] for i in range(count)),
                biases=tuple(arrays[f"bias_{i}"] for i in range(count)),
                precisions=tuple(str(name) for name in arrays["precisions"]),
                pp_per_nat=float(arrays["pp_per_nat"]),
            )
        except ValueError as error:
            raise ValueError(f"not a policy file: {' '.join(str(error).split()):.200}") from error


def _write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Like ``numpy.savez``, but with a fixed time stamp, so that equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()
