"""What a serving process must not need: training libraries ever, torch for decisions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wattbit

ROOT = Path(__file__).parents[1]
TRAINING = (
    "gymnasium", "stable_baselines3", "sb3_contrib", "hydra", "omegaconf", "matplotlib", "rich", "sklearn",
    "pandas", "tensorboard", "jinja2", "yaml",
)  # fmt: skip

_BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked here")
sys.meta_path.insert(0, Block())
"""


def run_without(blocked: tuple[str, ...], code: str, *arguments: str) -> str:
    """Run ``code`` in a new process that cannot import ``blocked``; what it prints."""
    script = f"BLOCKED = {set(blocked)!r}\n{_BLOCK}\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_blocks() -> None:
    with pytest.raises(AssertionError, match=r"torch.nn is blocked here|torch is blocked here"):
        run_without(("torch",), "import torch.nn")


def test_every_name_of_the_package_is_there_without_any_training_library() -> None:
    code = """
import wattbit
from wattbit import *
for name in wattbit.__all__:
    assert globals()[name] is getattr(wattbit, name), name
assert not BLOCKED & set(sys.modules)
print(*sorted(wattbit.__all__))
"""
    assert run_without(TRAINING, code).split() == sorted(wattbit.__all__)


def test_every_module_of_the_runtime_imports_without_any_training_library() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "wattbit").rglob("*.py")
    )
    modules = [name.removesuffix(".__init__") for name in modules]
    assert "wattbit.serving.runtime" in modules
    run_without(TRAINING, f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")


@pytest.mark.parametrize(
    "module",
    [
        "wattbit",
        "wattbit.serving.controller",
        "wattbit.policy",
        "wattbit.serving.bundle",
        "wattbit.audit.log",
        "wattbit.serving.monitor",
    ],
)
def test_decisions_import_without_torch_and_scipy(module: str) -> None:
    run_without((*TRAINING, "torch", "scipy"), f"import {module}")


def test_a_bundle_is_loaded_and_decided_on_without_torch(bundle_dir: Path) -> None:
    code = """
from wattbit import PrecisionController, load_bundle
controller = PrecisionController.load(sys.argv[1])
print(sorted(set(controller.decide(10.0).plan.values())), len(controller.propose(1.0)))
assert load_bundle(sys.argv[1]).policy is not None
assert "torch" not in sys.modules
"""
    assert run_without((*TRAINING, "torch", "scipy"), code, str(bundle_dir)) == "['int8'] 4\n"


def test_importing_the_package_alone_loads_nothing_heavy() -> None:
    run_without((*TRAINING, "torch", "numpy", "scipy"), "import wattbit; print(wattbit.__version__)")


def test_every_public_name_is_there() -> None:
    assert all(getattr(wattbit, name) is not None for name in wattbit.__all__)


def test_the_package_refuses_names_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match="module 'wattbit' has no attribute 'Nonsense'"):
        _ = wattbit.Nonsense


def test_the_public_names_are_pinned() -> None:
    assert set(wattbit.__all__) >= {
        "PRECISIONS", "ControllerBundle", "ModelProfile", "Precision", "PrecisionController", "PrecisionPlan",
        "PrecisionRuntime", "SwitchableModel", "load_bundle", "measure_profile",
    }  # fmt: skip
