"""Plan tables: what every plan of a small network costs and loses, in one file.

A table is a ``.npz`` file without pickles. With P precisions and G layer groups it has P^G rows, one a plan;
read as a number of G digits to base P, a row's index gives the precision of each group, the first group
first. Row 0 is the reference plan. What the arrays hold is said by `PlanTable`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import DataError
from wattbit.profile import ModelProfile
from wattbit.storage.npz import read_npz
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import parse_json

TABLE_SCHEMA = 1
TABLES = Path(__file__).parent / "tables"

_COUNTS = ("search_reference_only", "search_plan_only", "held_out_reference_only", "held_out_plan_only")
_MOST_ROWS = 2**22
_MOST_BYTES = 2**27


@dataclass(frozen=True, slots=True, eq=False)
class PlanTable:
    """What every plan of one network costs and loses.

    Attributes:
        profile: Profile of the layer groups; sensitivities are of the ``calibrate`` split.
        energy_j: Energy per inference of each plan, joules, float64 (plans,).
        search_reference_only: Search samples that the reference gets right and the plan wrong, uint16.
        search_plan_only: The reverse.
        search_divergence: Mean divergence from the reference on the search samples, nats, float32.
        held_out_reference_only: As ``search_reference_only``, on the held-out samples.
        held_out_plan_only: The reverse.
        search_samples: Number of search samples.
        held_out_samples: Number of held-out samples.
        about: Model, data set, seed, versions: JSON values for people to read.
    """

    profile: ModelProfile
    energy_j: NDArray[np.float64]
    search_reference_only: NDArray[np.uint16]
    search_plan_only: NDArray[np.uint16]
    search_divergence: NDArray[np.float32]
    held_out_reference_only: NDArray[np.uint16]
    held_out_plan_only: NDArray[np.uint16]
    search_samples: int
    held_out_samples: int
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.energy_j)

    def to_bytes(self) -> bytes:
        """The file's content."""
        arrays = {name: getattr(self, name) for name in ("energy_j", "search_divergence", *_COUNTS)}
        header = {
            "schema": TABLE_SCHEMA,
            "search_samples": self.search_samples,
            "held_out_samples": self.held_out_samples,
            "about": dict(self.about),
            "profile": parse_json(self.profile.to_json()),
        }
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        content = io.BytesIO()
        np.savez_compressed(content, header=text, **arrays)
        return content.getvalue()

    @classmethod
    def read(cls, table: str | Path) -> PlanTable:
        """Read a table.

        Args:
            table: Name of a table that comes with the checkout, or a path that ends in ``.npz``.

        Raises:
            DataError: If there is no such table, or it is damaged.
        """
        path = table_path(table)
        try:
            return _table(read_npz(read_regular(path, _MOST_BYTES), _MOST_BYTES))
        except (ArithmeticError, AttributeError, OSError, LookupError, TypeError, ValueError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DataError(
                f"table {path} is damaged ({why:.120}); get it anew, or build it "
                "with python -m scripts.exhaustive"
            ) from None


def table_path(table: str | Path) -> Path:
    """Where a table is: a path that ends in ``.npz``, or the name of a table that comes with the checkout.

    Raises:
        DataError: If there is none.
    """
    path = Path(table) if str(table).endswith(".npz") else TABLES / f"{table}.npz"
    if not path.is_file():
        known = ", ".join(table_names()) or "none"
        raise DataError(f"no table {str(table)!r:.120}; give the path of an .npz file, or one of: {known}")
    return path


def table_names() -> list[str]:
    """The names of the tables that come with the checkout."""
    return sorted(path.stem for path in TABLES.glob("*.npz"))


def energies_j(profile: ModelProfile) -> NDArray[np.float64]:
    """Energy per inference of every plan, joules, (plans,), in the order of tables."""
    names = profile.precisions
    total = np.array([profile.other_energy_j or 0.0])
    for index in range(len(profile.layers)):
        steps = [[profile.step_energy_j(index, name, before) for name in names] for before in names]
        # The model's input is at the reference, which is the first precision.
        step = np.array(steps) if index else np.array(steps[:1])
        total = (total.reshape(-1, len(step), 1) + step).reshape(-1)
    return total


def _table(arrays: Mapping[str, NDArray[Any]]) -> PlanTable:
    header = parse_json(arrays["header"].tobytes())
    if header["schema"] != TABLE_SCHEMA:
        raise ValueError(f"its schema is {header['schema']}, this version reads {TABLE_SCHEMA}")
    profile = ModelProfile.from_json(json.dumps(header["profile"]))
    if any(set(layer.costs) != set(profile.precisions) for layer in profile.layers):
        raise ValueError("a group does not support every precision")
    rows = len(profile.precisions) ** len(profile.layers)
    if rows > _MOST_ROWS:
        raise ValueError(f"{rows} plans are more than {_MOST_ROWS}")
    samples = {part: _positive(header[f"{part}_samples"]) for part in ("search", "held_out")}
    types: dict[str, type] = {
        "energy_j": np.float64,
        "search_divergence": np.float32,
        **dict.fromkeys(_COUNTS, np.uint16),
    }
    for name, kind in types.items():
        if arrays[name].dtype != kind or arrays[name].shape != (rows,):
            kept = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{name} is {kept}, not {rows} of {kind.__name__}")
    for part, count in samples.items():
        lost, gained = (arrays[f"{part}_{kind}"].astype(np.int64) for kind in ("reference_only", "plan_only"))
        if int((lost + gained).max()) > count:
            raise ValueError(f"a plan changes more than the {count} {part} samples")
    divergence = arrays["search_divergence"]
    if not (np.isfinite(divergence).all() and (divergence >= 0).all()):
        raise ValueError("a divergence is negative or not finite")
    if not np.allclose(arrays["energy_j"], energies_j(profile), rtol=1e-9, atol=0.0):
        raise ValueError("energies are not those of the profile")
    return PlanTable(
        profile=profile,
        **{name: arrays[name] for name in types},
        search_samples=samples["search"],
        held_out_samples=samples["held_out"],
        about=dict(header["about"]),
    )


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < math.inf:
        raise ValueError(f"a number of samples is {value!r:.40}")
    return value
