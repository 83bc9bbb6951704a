"""Which plans of the encoder are measured, and how figures scatter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from gpu_stand_in import SMALL, HandClock, cpu_machine, minute_report, read_report

from scripts.gpu import encoder, layers


def test_only_plans_that_run_natively_are_measured() -> None:
    with encoder.attached_encoder(torch.device("cpu"), SMALL) as (model, _):
        found = encoder.plans(model)
        for _, plan in found:
            for index, layer in enumerate(model.layer_names):
                assert model.native_kernel(index, plan[layer]) is not None
    with encoder.attached_encoder(torch.device("cpu"), SMALL, native=False) as (model, _):
        assert encoder.plans(model) == []


def test_a_mixed_plan_tells_attention_from_feed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    with encoder.attached_encoder(torch.device("cpu"), SMALL) as (model, _):
        layer_names = model.layer_names

        def native(index: int, name: str) -> str | None:
            # As on a device that runs everything, but no int4_wo for so few classes.
            return None if (name, layer_names[index]) == ("int4_wo", "head") else name

        monkeypatch.setattr(model, "native_kernel", native)
        found = dict(encoder.plans(model))
    assert len(found) == len(layers.OFFERED) + len(encoder.MIXED)
    mixed = found["int8 attention, bf16 feed-forward"]
    assert mixed["encoder.layer0.attention.query"] == "int8"
    assert mixed["encoder.layer0.ffn.up"] == "bf16"
    assert found["uniform int4_wo"]["head"] == "fp32"
    assert found["uniform int8"]["head"] == "int8"


def test_where_nothing_runs_natively_the_reference_shows_the_scatter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = minute_report(tmp_path, HandClock())
    monkeypatch.setattr(encoder, "plans", lambda model: [])
    body = partial(encoder.repeatability, machine=cpu_machine(), window_s=0.002, size=SMALL)
    report.run("repeatability", body, share=1.0)
    content = read_report(tmp_path / "report.json")["sections"]["repeatability"]
    assert content["works"] == ["reference", "reference"]
    assert content["status"] == "ok"


def test_the_spread_is_the_standard_deviation_over_the_mean() -> None:
    rows = [
        {"reference": {"seconds": before}, "candidate": {"seconds": after}}
        for before, after in ((1.0, 2.0), (2.0, 4.0), (3.0, 6.0))
    ]
    found = encoder.spreads(rows)
    assert found["reference_seconds"] == pytest.approx(0.5)
    assert found["candidate_seconds"] == pytest.approx(0.5)
    assert found["ratio_seconds"] == pytest.approx(0.0)
    assert encoder.spreads(rows[:1]) == {}
