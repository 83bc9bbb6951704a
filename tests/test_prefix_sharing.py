"""Plans that share what they begin with give what plain passes give, bit for bit, or say why they cannot."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.errors import ConfigError, DataError, ModelError, PrecisionError
from wattbit.execution.prefix_sharing import PrefixSharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, batches, select
from wattbit.plan import PrecisionPlan
from workloads.classifier_training import seeded
from workloads.digits import DigitsNet
from workloads.fashion_mnist import FashionNet
from workloads.sentiment_net import EncoderSize, SentimentNet


class ResidualNet(nn.Module):
    """Chained convolutions with shortcuts, a layer that runs several times, and ReLUs that work in place."""

    def __init__(self, blocks: int, repeats: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
            for _ in range(blocks)
        )
        self.shared = nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.repeats = repeats
        self.head = nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x) + x)
        x = x.mean((2, 3))
        for _ in range(self.repeats):
            x = torch.tanh(self.shared(x)) + x
        logits: Tensor = self.head(x)
        return logits


def bits(logits: Tensor) -> Tensor:
    return logits.view(torch.int32)


def random_plans(model: SwitchableModel, count: int, seed: int) -> list[PrecisionPlan]:
    """Plans that often begin alike, some of them twice."""
    rng = random.Random(seed)  # noqa: S311 - nothing here is secret
    names = [precision.name for precision in model.precisions]
    plans = [PrecisionPlan({layer: rng.choice(names) for layer in model.layer_names})]
    while len(plans) < count:
        changed = {layer: rng.choice(names) for layer in model.layer_names if rng.random() < 0.3}
        plans.append(rng.choice(plans).replace(**changed))
    return plans


@contextmanager
def attached(
    net: nn.Module, inputs: Inputs, names: Sequence[str] = tiny.PRECISIONS
) -> Iterator[SwitchableModel]:
    with SwitchableModel(net.eval(), select(inputs, slice(0, 2)), names) as model:
        model.calibrate([inputs])
        yield model


def assert_exact(
    model: SwitchableModel, sharing: PrefixSharing, cut: list[Inputs], plans: list[PrecisionPlan]
) -> None:
    """Shared outputs are plain ones, and every distinct plan comes once."""
    shared = list(sharing.logits(cut, plans))
    assert sorted(plan.plan_id for plan, _ in shared) == sorted({plan.plan_id for plan in plans})
    for plan, logits in shared:
        plain = model.logits(cut, plan)
        assert logits.dtype == plain.dtype
        assert torch.equal(bits(logits), bits(plain))


# What comes out.


@settings(deadline=None, max_examples=25)
@given(
    blocks=st.integers(0, 3),
    repeats=st.integers(1, 3),
    count=st.integers(2, 12),
    seed=st.integers(0, 1000),
    memory_bytes=st.sampled_from([0, 1, 9000, 40_000, 2**30]),
    native=st.booleans(),
)
def test_random_plans_of_random_networks_give_what_plain_passes_give(
    blocks: int, repeats: int, count: int, seed: int, memory_bytes: int, native: bool
) -> None:
    torch.manual_seed(seed)
    net, x = ResidualNet(blocks, repeats).eval(), torch.randn(6, 1, 5, 5)
    with SwitchableModel(net, x[:2], ("fp32", "bf16", "int8", "int4"), native=native) as model:
        model.calibrate([x])
        sharing = PrefixSharing(model, x, memory_bytes=memory_bytes)
        assert sharing.refusal is None
        assert_exact(model, sharing, list(batches(x, 4)), random_plans(model, count, seed))


@pytest.mark.parametrize("memory_bytes", [0, 20_000, 2**30])
def test_networks_of_this_repository_give_what_plain_passes_give(
    linear_model: tiny.TokenNet,
    linear_inputs: Tensor,
    switchable: SwitchableModel,
    conv_inputs: Tensor,
    memory_bytes: int,
) -> None:
    with attached(linear_model, linear_inputs) as tokens:
        for model, x in ((tokens, linear_inputs), (switchable, conv_inputs)):
            sharing = PrefixSharing(model, x, memory_bytes=memory_bytes)
            assert sharing.refusal is None
            assert_exact(model, sharing, list(batches(x, 24)), random_plans(model, 20, 3))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (DigitsNet, torch.rand(5, 1, 8, 8)),
        (FashionNet, torch.rand(5, 1, 28, 28)),
        (
            lambda: SentimentNet(EncoderSize(2, 16, 32, 2, vocabulary=20, positions=6), 3),
            {"input_ids": torch.arange(30).view(5, 6) % 20, "attention_mask": torch.ones(5, 6).long()},
        ),
    ],
)
def test_the_networks_of_all_workloads_share(make: Callable[[], nn.Module], inputs: Inputs) -> None:
    with attached(seeded(make, 0), inputs, ("fp32", "int8", "int4")) as model:
        sharing, plans = PrefixSharing(model, inputs), random_plans(model, 8, 0)
        assert sharing.refusal is None
        assert_exact(model, sharing, list(batches(inputs, 3)), plans)
        assert sharing.layer_executions < sharing.plain_layer_executions


def test_a_layer_that_writes_codes_for_the_next_is_not_taken_for_one_that_does_not() -> None:
    """Both plans give the first layer int8, but it only speaks 8 bits to a second layer that does, too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(16, 1, 8, 8)
    net(x)
    with attached(net, x, ("fp32", "bf16", "int8")) as model:
        chained = PrecisionPlan.uniform(model.layer_names, "int8")
        plans = [chained, chained.replace(**{"2": "bf16"}), chained.replace(**{"2": "fp32"})]
        assert_exact(model, PrefixSharing(model, x), [x], plans)


class Pair(NamedTuple):
    """Two inputs by name."""

    left: Tensor
    right: Tensor


class PairList(list[Tensor]):
    """A list of a class of its own."""


@pytest.mark.parametrize("pair_of", [lambda *pair: pair, Pair, lambda *pair: PairList(pair)])
def test_inputs_by_name_with_flags_and_what_is_no_number_are_run_too(pair_of: Callable[..., Any]) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], double: bool = False) -> dict[str, Tensor]:
            y = self.first(x + pair[0] * pair[1]) * self.scale
            return {"logits": self.second(y * 2 if double else y)}

    x = torch.randn(8, 4)
    inputs = {"x": x, "pair": pair_of(torch.randn(8, 4), torch.randn(8, 4)), "double": True}
    with attached(Named(), inputs) as model:
        sharing, plans = PrefixSharing(model, inputs), random_plans(model, 6, 0)
        assert sharing.refusal is None
        x[3] = torch.nan
        assert_exact(model, sharing, list(batches(inputs, 5)), plans)
        before = sharing.layer_executions, sharing.plain_layer_executions
        # Another flag is another forward pass than the one that was traced.
        assert_exact(model, sharing, [{**inputs, "double": False}], plans)
        run, plain = sharing.layer_executions - before[0], sharing.plain_layer_executions - before[1]
        assert run == plain == 2 * len(set(plans))


def test_tracing_leaves_the_model_as_it_is(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    before = {name: dict(vars(module)) for name, module in switchable.model.named_modules()}
    plan = switchable.active_plan
    dict(PrefixSharing(switchable, conv_inputs).logits([conv_inputs], random_plans(switchable, 4, 0)))
    assert {name: dict(vars(module)) for name, module in switchable.model.named_modules()} == before
    assert switchable.active_plan == plan


# What it costs.


def test_layers_run_once_for_all_plans_that_begin_alike(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    first, second, third, last = switchable.layer_names
    reference = switchable.reference_plan
    plans = [
        reference,
        reference.replace(**{last: "bf16"}),  # shares three layers with the reference
        reference.replace(**{second: "bf16"}),  # one
        reference.replace(**{last: "int4"}),  # three
        reference.replace(**{second: "bf16", third: "int4"}),  # two with the plan above
        reference.replace(**{first: "bf16"}),  # none
    ]
    sharing = PrefixSharing(switchable, conv_inputs)
    assert (sharing.layer_executions, sharing.plain_layer_executions) == (0, 0)
    dict(sharing.logits([conv_inputs, conv_inputs], plans))
    assert sharing.layer_executions == 2 * (4 + 1 + 3 + 1 + 2 + 4)
    assert sharing.plain_layer_executions == 2 * 6 * 4


def test_a_layer_called_several_times_is_run_again_after_the_first_difference_only() -> None:
    net, x = ResidualNet(1, 3), torch.randn(8, 1, 5, 5)
    with attached(net, x) as model:
        reference = model.reference_plan
        plans = [reference, reference.replace(head="bf16"), reference.replace(shared="bf16")]
        sharing = PrefixSharing(model, x)
        dict(sharing.logits([x], plans))
        assert sharing.plain_layer_executions == 3 * 7
        assert sharing.layer_executions == 7 + 1 + 4


def test_what_is_kept_stays_within_the_memory_and_the_most_useful_stays_longest() -> None:
    net = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)), nn.Linear(16, 1))
    x = torch.randn(32, 16)
    executions = []
    for memory_bytes in (0, x.nbytes, 2 * x.nbytes, 6 * x.nbytes):
        with attached(net, x) as model:
            sharing, plans = PrefixSharing(model, x, memory_bytes=memory_bytes), random_plans(model, 40, 1)
            assert_exact(model, sharing, [x], plans)
            executions.append(sharing.layer_executions)
            plain = sharing.plain_layer_executions
    assert executions[0] == plain
    assert executions == sorted(executions, reverse=True)
    assert executions[1] < executions[0]
    assert executions[-1] < executions[1]


def test_one_plan_alone_is_a_plain_pass(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    sharing, plan = PrefixSharing(switchable, conv_inputs), switchable.reference_plan
    assert_exact(switchable, sharing, [conv_inputs], [plan, plan])
    assert sharing.layer_executions == sharing.plain_layer_executions == 4
    assert list(sharing.logits([conv_inputs], [])) == []


# Models that cannot share.


class Two(nn.Module):
    """Two layers, and a subclass that does something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(1))

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.between(x, self.first(x)))
        return logits


class Branching(Two):
    """Looks at values."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        return -y if y.sum() > 0 else y


class Noisy(Two):
    """Draws random numbers."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        return y + torch.rand_like(y)


class Writing(Two):
    """Writes into what was kept before its second layer."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        z: Tensor = self.second(y)
        y.mul_(2.0)
        return z + y.sum(1, keepdim=True)


class Aliasing(Two):
    """Reads by another name what it has written into."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        z = y
        y += x  # tracers make it y = y + x, which leaves z as it was
        return y + z


class Remembering(Two):
    """Counts its passes."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        self.count += 1.0
        return y * 1.0 + 0.0 * self.count


class Lengths(Two):
    """Needs a length as a number."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        return y + torch.arange(len(y)).unsqueeze(1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Branching, r"cannot be traced \(TraceError: .*each plan runs from its first layer"),
        (Lengths, r"cannot be traced \(.*each plan runs from its first layer"),
        (Writing, "writes in place"),
        (Aliasing, "gives another output; each plan runs from its first layer"),
        (Remembering, "writes into the model's own tensors"),
        (Noisy, "must not draw random numbers"),
    ],
)
def test_a_model_that_cannot_share_is_run_plan_by_plan_and_says_why(make: type[Two], reason: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(8, 4)
    with attached(make(), x) as model:
        sharing, plans = PrefixSharing(model, x), random_plans(model, 5, 0)
        assert sharing.refusal is not None
        assert re.search(reason, sharing.refusal)
        assert "\n" not in sharing.refusal
        if make is not Noisy:
            assert_exact(model, sharing, [x], plans)
        else:
            assert {plan for plan, _ in sharing.logits([x], plans)} == set(plans)
        assert sharing.layer_executions == sharing.plain_layer_executions == 2 * len(set(plans))


def test_users_mistakes_are_refused(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    with pytest.raises(ConfigError, match="memory_bytes is -1"):
        PrefixSharing(switchable, conv_inputs, memory_bytes=-1)
    sharing, plan = PrefixSharing(switchable, conv_inputs), switchable.reference_plan
    with pytest.raises(DataError, match="0 samples"):
        list(sharing.logits([], [plan]))
    other = PrecisionPlan.uniform(switchable.layer_names, "int3")
    with pytest.raises(PrecisionError, match="'int3' is not on offer"):
        list(sharing.logits([conv_inputs], [plan, other]))


def test_a_detached_model_runs_no_plan(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with attached(conv_model, conv_inputs) as model:
        sharing, plans = PrefixSharing(model, conv_inputs), random_plans(model, 3, 0)
        kernels = model.prepare(plans[0])
    with pytest.raises(ModelError, match="detached"):
        dict(sharing.logits([conv_inputs], plans))
    with pytest.raises(ModelError, match="detached"), model.holding(kernels):
        pass


def test_modules_without_layers_run_as_they_are_whatever_they_do() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.neg() if x.sum() > 0 else F.relu(x)

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), Opaque(), nn.Linear(4, 3)), torch.randn(8, 4)
    with attached(net, x) as model:
        sharing = PrefixSharing(model, x)
        assert sharing.refusal is None
        assert_exact(model, sharing, list(batches(x, 3)), random_plans(model, 8, 0))
