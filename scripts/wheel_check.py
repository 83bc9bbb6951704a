"""Does the wheel serve? ``python -m scripts.wheel_check make FOLDER`` exports a bundle in a checkout.

``python wheel_check.py run FOLDER`` serves it, from outside the checkout, with wattbit, numpy and torch only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

SAMPLES = 512


class Net(nn.Module):
    """A small network with a convolution, a BatchNorm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, 8, 8) to (batch, 10)."""
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


def network() -> nn.Module:
    """The network with the weights that every call makes again."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def images() -> Tensor:
    """The same images at every call, (SAMPLES, 1, 8, 8)."""
    return torch.rand(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def make(folder: Path) -> None:
    """Profile the network, certify uniform int8 against its own predictions, and export a bundle."""
    import yaml

    from wattbit import ControllerBundle, PrecisionPlan, SwitchableModel, measure_profile
    from wattbit.calibration import calibration_to_json
    from wattbit.energy.device_model import DeviceModel
    from wattbit.guardrail import Guardrail
    from wattbit.judging.certificate import Certificate
    from wattbit.judging.judgement import CandidatePlan, certify_sequence
    from wattbit.profiling.layer_costs import ModelledCost
    from wattbit.serving.bundle import BundledPlan, save_bundle
    from wattbit.storage.fingerprint import model_fingerprint, tensors_sha256

    table = Path(__file__).parent.parent / "conf" / "energy" / "device" / "edge_7nm.yaml"
    device = DeviceModel.from_table(yaml.safe_load(table.read_text(encoding="utf-8")))
    net, x, guardrail = network(), images(), Guardrail(5.0)
    with SwitchableModel(net, x[:2], ["fp32", "int8"]) as model:
        model.calibrate([x[:128]])
        profile = measure_profile(model, x[:128], ModelledCost(device, model.shapes))
        plan = PrecisionPlan.uniform(model.layer_names, "int8")
        labels = model.logits([x], model.reference_plan).argmax(1)
        agrees = (model.logits([x], plan).argmax(1) == labels).numpy()
        calibration = calibration_to_json(model.calibration)
    judgements = certify_sequence(
        (labels == labels).numpy(), [CandidatePlan(plan.plan_id, agrees)], labels.numpy(), guardrail
    )
    energy_j, judgement = profile.plan_energy_j(plan), judgements[plan.plan_id]
    bundled = BundledPlan(
        plan, 5.0, "uniform_int8", energy_j, profile.saving(energy_j), profile.plan_latency_ms(plan),
        judgement.drop_pp, judgement.verdict, profile.provenance,
    )  # fmt: skip
    fingerprint = model_fingerprint(net)
    certificate = Certificate(guardrail, judgements, fingerprint, tensors_sha256([("inputs", x)]), len(x))
    save_bundle(
        ControllerBundle((bundled,), (bundled,), profile, calibration, (certificate,), None, fingerprint),
        folder / "bundle",
    )


def run(folder: Path) -> None:
    """Load the bundle, run a batch under the certified plan and one at the reference."""
    from wattbit import PrecisionRuntime

    net, x = network(), images()
    with torch.inference_mode():
        expected = net(x)
        with PrecisionRuntime.load(folder / "bundle", net, tolerance_pp=5.0) as runtime:
            plan = runtime.plan
            logits = runtime(x)
        restored = torch.equal(net(x), expected)
    agreement = float((logits.argmax(1) == expected.argmax(1)).double().mean())
    saved_j = runtime.stats.energy_saved_j
    print(
        f"plan {dict(plan)}, agreement {agreement:.4f}, {saved_j:.3g} J saved (modelled), restored {restored}"
    )
    if set(plan.values()) != {"int8"} or agreement < 0.95 or not restored or saved_j <= 0:
        sys.exit("the wheel does not serve the bundle as the checkout made it")


def main(action: str, folder: str) -> None:
    """``make`` or ``run``."""
    {"make": make, "run": run}[action](Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
