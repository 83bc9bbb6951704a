"""Compiled plans: one callable a plan, built ahead, switched by reference, equal to the plan uncompiled."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import Tensor, nn

from wattbit.calibration import LayerCalibration
from wattbit.errors import ModelError, PlanError, PrecisionError
from wattbit.execution import compiled as compiled_module
from wattbit.execution.compiled import CompiledPlans, fixed_copy
from wattbit.execution.kernels.cuda_float import pack_half
from wattbit.execution.kernels.cuda_low_bit import pack_fp8, pack_int8
from wattbit.execution.kernels.kernel import Kernel, Pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, select
from wattbit.numerics import activation_quantizer
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision


class _Two(nn.Module):
    """Two layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


NAMES = ("bf16", "int8", "mxfp4")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _attached(net: nn.Module, x: Inputs) -> SwitchableModel:
    model = SwitchableModel(net, select(x, slice(2)), NAMES)
    model.calibrate([x])
    return model


def _uniform(model: SwitchableModel, name: str) -> PrecisionPlan:
    return PrecisionPlan.uniform(model.layer_names, name)


@pytest.mark.parametrize(
    ("net", "x", "backend"),
    [(tiny.conv_model(), tiny.images(16), "eager"), (tiny.linear_model(), tiny.tokens(16), "aot_eager")],
)
def test_a_compiled_plan_gives_what_the_plan_gives(net: nn.Module, x: Tensor, backend: str) -> None:
    with _attached(net, x) as model:
        mixed = _uniform(model, "int8").replace(**{model.layer_names[1]: "fp32"})
        compiled = CompiledPlans(model, [_uniform(model, "bf16"), mixed], x, backend=backend)
        for plan in compiled.plans:
            torch.testing.assert_close(compiled.run(x, plan), model.run(x, plan))


def test_layers_that_speak_8_bits_to_each_other_do_so_compiled() -> None:
    x = torch.randn(8, 16)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    with _attached(net, x) as model:
        plan = _uniform(model, "int8")
        compiled = CompiledPlans(model, [plan], x, backend="aot_eager")
        torch.testing.assert_close(compiled.run(x, plan), model.run(x, plan))


def test_a_switch_changes_what_the_next_batch_runs(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    plan = _uniform(switchable, "mxfp4")
    compiled = CompiledPlans(switchable, [plan], conv_inputs, backend="eager")
    assert compiled.active_plan == switchable.reference_plan
    before = compiled.run(conv_inputs)
    compiled.switch(plan)
    assert compiled.active_plan == plan
    torch.testing.assert_close(compiled.run(conv_inputs), switchable.run(conv_inputs, plan))
    compiled.switch(switchable.reference_plan)
    assert torch.equal(compiled.run(conv_inputs), before)


def test_nothing_is_compiled_once_the_plans_are_built(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    built = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal built
        built += 1
        return graph.forward

    plans = [_uniform(switchable, name) for name in ("bf16", "int8")]
    compiled = CompiledPlans(switchable, plans, conv_inputs, backend=counting)  # type: ignore[arg-type]
    after_building = built
    assert after_building > 0
    for plan in (*compiled.plans, *compiled.plans):
        compiled.switch(plan)
        compiled.run(conv_inputs)
    assert built == after_building


def test_more_plans_than_torch_compiles_of_one_function_are_all_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    # As with the kernels of CUDA, what is traced differs from plan to plan.
    monkeypatch.setattr(compiled_module, "traceable", lambda kernel: kernel.run)
    x = torch.full((8, 4), 2.0)
    with SwitchableModel(_Two(), x, ["tf32", "bf16", "fp16"]) as model:
        model.calibrate([x])
        kinds = ("fp32", "tf32", "bf16", "fp16")
        plans = [PrecisionPlan({"first": one, "second": other}) for one in kinds for other in kinds][:9]
        compiled = CompiledPlans(model, plans, x, backend="eager")
        assert len(compiled.plans) == 9 > torch._dynamo.config.recompile_limit


def test_copies_share_the_parameters_and_leave_the_model_alone(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    expected = switchable.run(conv_inputs)
    fixed = fixed_copy(switchable, _uniform(switchable, "int8"), conv_inputs)
    own = {name: tensor.data_ptr() for name, tensor in switchable.model.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in fixed.state_dict().items()} == own
    assert torch.equal(switchable.run(conv_inputs), expected)


def test_compiled_plans_outlive_the_attached_model(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with _attached(conv_model, conv_inputs) as model:
        plan = _uniform(model, "int8")
        expected = model.run(conv_inputs, plan)
        compiled = CompiledPlans(model, [plan], conv_inputs, backend="eager")
    torch.testing.assert_close(compiled.run(conv_inputs, plan), expected)


def test_threads_keep_the_plan_that_their_batch_began_with(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    plans = [switchable.reference_plan, _uniform(switchable, "mxfp4")]
    compiled = CompiledPlans(switchable, plans, conv_inputs, backend="eager")
    expected = [compiled.run(conv_inputs, plan) for plan in plans]
    outputs: list[Tensor] = []

    def serve() -> None:
        outputs.extend(compiled.run(conv_inputs) for _ in range(20))

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(50):
        compiled.switch(plans[step % 2])
    for thread in threads:
        thread.join()
    assert len(outputs) == 40
    assert all(any(torch.allclose(y, wanted) for wanted in expected) for y in outputs)


def test_a_plan_that_was_not_built_is_refused(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    compiled = CompiledPlans(switchable, [], conv_inputs, backend="eager")
    plan = _uniform(switchable, "int8")
    with pytest.raises(PlanError, match=f"plan {plan.plan_id} was not compiled, 1 others were"):
        compiled.switch(plan)
    with pytest.raises(PlanError, match="give CompiledPlans every plan that it will serve"):
        compiled.run(conv_inputs, plan)
    assert compiled.active_plan == switchable.reference_plan


def test_plans_that_the_model_cannot_run_are_refused(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    with pytest.raises(PrecisionError, match="'int3' is not on offer"):
        CompiledPlans(switchable, [_uniform(switchable, "int3")], conv_inputs, backend="eager")
    with pytest.raises(PlanError, match="names layer 'nowhere'"):
        CompiledPlans(switchable, [PrecisionPlan({"nowhere": "int8"})], conv_inputs, backend="eager")


class _Skipping(_Two):
    """Uses its second layer for large inputs only."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return self.second(y) if x.abs().max() > 1 else y


def test_an_example_that_reaches_other_layers_is_refused() -> None:
    large, small = torch.full((2, 4), 2.0), torch.full((2, 4), 0.5)
    with SwitchableModel(_Skipping(), large, ["bf16"]) as model:
        model.calibrate([large])
        with pytest.raises(ModelError, match="the example reaches 1 layers"):
            CompiledPlans(model, [], small, backend="eager")


@pytest.mark.parametrize(("name", "pack"), [("int8", pack_int8), ("fp8_e4m3", pack_fp8), ("bf16", pack_half)])
def test_kernels_of_cuda_are_traced_as_one_graph(name: str, pack: Pack) -> None:
    x = torch.randn(40, 64)
    calibration = LayerCalibration(3.0, {8: activation_quantizer(x, 8)})
    kernel = pack(take_weights(nn.Linear(64, 32)), precision(name), calibration)
    compiled: Kernel = torch.compile(kernel, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), kernel(x))


def test_a_convolution_of_cuda_is_traced_as_one_graph() -> None:
    x = torch.randn(2, 8, 6, 6)
    calibration = LayerCalibration(3.0, {8: activation_quantizer(x, 8)})
    kernel = pack_half(take_weights(nn.Conv2d(8, 4, 3)), precision("bf16"), calibration)
    with torch.inference_mode():
        compiled = torch.compile(kernel, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), kernel(x))
