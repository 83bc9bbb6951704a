"""The certificate as a document: read back, proved again, refused when garbled."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from outcomes import ONE_PP, outcomes

from wattbit.errors import BundleError
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import Certificate
from wattbit.judging.judgement import CandidatePlan, certify_sequence

# --- The document ------------------------------------------------------------------------------------------


def certificate() -> Certificate:
    reference, good = outcomes(5000, 5, 5)
    _, bad = outcomes(5000, 100, 0)
    guardrail = Guardrail(1.0, per_class_pp={1: 2.5}, max_latency_ms=5.0)
    labels = np.arange(5000) % 2
    plans = [
        CandidatePlan("aa", good, latency_ms=1.5),
        CandidatePlan("bb", bad, latency_ms=1.0),
        CandidatePlan("cc", good, latency_ms=7.0),
    ]
    return Certificate(
        guardrail=guardrail,
        judgements=certify_sequence(reference, plans, labels, guardrail),
        model_fingerprint="m" * 64,
        data_fingerprint="d" * 64,
        samples=5000,
        created="2026-01-31T09:00:00Z",
    )


def test_a_certificate_survives_its_json_form() -> None:
    assert Certificate.from_json(certificate().to_json()) == certificate()


def test_only_plans_that_passed_may_run() -> None:
    assert certificate().passed == ("aa",)


def test_a_certificate_holds_no_time_that_was_not_given() -> None:
    data = json.loads(certificate().to_json())
    assert data["created"] == "2026-01-31T09:00:00Z"
    assert Certificate(ONE_PP, {}, "m", "d", 1).created is None


def changed(path: str, value: Any) -> str:
    data = json.loads(certificate().to_json())
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("schema", KeyError),
        ("split", "test"),
        ("samples", "many"),
        ("samples", -1),
        ("created", 7),
        ("model_fingerprint", None),
        ("data_fingerprint", KeyError),
        ("extra", 1),
        ("judgements", []),
        ("judgements.aa", {}),
        ("judgements.aa.verdict", "passed"),
        ("judgements.aa.reasons", "fine"),
        ("judgements.aa.drop_pp", "0"),
        ("judgements.aa.upper_pp", True),
        ("judgements.aa.needed_samples", 1.5),
        ("judgements.aa.counts", {"samples": 5}),
        ("judgements.aa.counts.samples", 1),
        ("judgements.aa.extra", 1),
        ("guardrail.tolerance_pp", 0),
        ("guardrail.alpha", KeyError),
        ("guardrail", None),
    ],
)
def test_a_garbled_certificate_is_refused_in_one_line(path: str, value: Any) -> None:
    with pytest.raises(BundleError) as caught:
        Certificate.from_json(changed(path, value))
    assert "export the bundle again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"schema": 1, "schema": 1}', "[" * 100_000, '{"schema": NaN}']
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        Certificate.from_json(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("judgements.bb.verdict", "pass"),
        ("judgements.cc.verdict", "pass"),
        ("judgements.aa.counts.reference_only", 60),
        ("judgements.aa.tolerance_pp", 0.01),
        ("judgements.aa.tolerance_pp", None),
        ("judgements.aa.counts", None),
    ],
)
def test_a_pass_that_its_own_figures_contradict_is_refused(path: str, value: Any) -> None:
    text = changed(path, value)
    if path == "judgements.aa.counts":
        data = json.loads(text)
        data["judgements"]["aa"]["upper_pp"] = 1.5
        text = json.dumps(data)
    with pytest.raises(BundleError, match="marked as passed"):
        Certificate.from_json(text)


def test_certifying_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "import wattbit.audit.log, wattbit.serving.monitor\n"
        "from wattbit.judging.judgement import judge\n"
        "from wattbit.guardrail import Guardrail\n"
        "right = np.ones(500, dtype=bool)\n"
        "print(judge(right, right, None, Guardrail(1.0, strict=True)).verdict)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "pass", done.stderr
