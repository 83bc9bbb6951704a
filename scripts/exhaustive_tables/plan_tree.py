"""Every plan of a small network in one walk: what plans share at the beginning runs once.

The model's traced graph is cut into stages, one a layer group. The walk goes through the tree of precisions
depth first, so that P^G plans cost a little more than their last stages, and holds one set of activations a
depth. A layer that reads nothing of the stage before its own, such as the convolution of a shortcut, runs
once for all precisions of that stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from envs.grouping import Groups, require_groups
from wattbit.errors import ModelError
from wattbit.execution.layer_graph import Values
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import logits_of
from wattbit.plan import PrecisionPlan

Memo = dict[tuple[int, int], Values]
"""What was computed early, by stage and precision."""


class PlanTree:
    """Runs all plans of an attached, calibrated model.

    The kernel of a layer must not depend on its neighbours' precisions, as chained native kernels do: attach
    the model with ``native=False``.

    Args:
        model: The model; its inputs are one tensor.
        groups: Layers that change precision together.
        precisions: Names of the precisions, the first varied last.

    Raises:
        ConfigError: If the groups do not fit the layers.
        ModelError: If the model cannot be traced, or runs its layers in another order.
    """

    def __init__(self, model: SwitchableModel, groups: Groups, precisions: Sequence[str]) -> None:
        require_groups(groups, model.layer_names)
        self._model = model
        self._uniform = [PrecisionPlan.uniform(model.layer_names, name) for name in precisions]
        try:
            graph = fx.symbolic_trace(model.model).graph
        except Exception as error:  # tracing runs the model's own code, which can fail in any way
            raise ModelError(f"the model cannot be traced ({error}); its forward must not branch") from None
        (self._input,) = [node for node in graph.nodes if node.op == "placeholder"]
        # The logits, or whatever `logits_of` finds them in.
        (self._output,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
        self._before, self._stages = _cut(graph, groups)
        self._live = [self._read_after(depth) for depth in range(len(self._stages) + 1)]
        self._early = [self._read_early(depth) for depth in range(len(self._stages))]

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> Iterator[Tensor]:
        """The logits (samples, classes) of ``batch`` under every plan, in the order of `envs.plan_table`."""
        values: Values = {self._input: batch}
        self._run(self._before, values)
        yield from self._descend(0, values, ({},))

    def _descend(self, depth: int, values: Values, memos: tuple[Memo, ...]) -> Iterator[Tensor]:
        if depth == len(self._stages):
            yield logits_of(values[self._output])
            return
        kept = {node: value for node, value in values.items() if node in self._live[depth]}
        early = self._early[depth]
        for index, plan in enumerate(self._uniform):
            reached = dict(kept)
            with self._model.holding(self._model.prepare(plan)):
                for node in self._stages[depth]:
                    memo = memos[early[node]].setdefault((depth, index), {}) if node in early else reached
                    if node not in memo:
                        memo[node] = self._value(node, reached)
                    reached[node] = memo[node]
            yield from self._descend(depth + 1, reached, (*memos, {}))

    def _run(self, nodes: Sequence[fx.Node], values: Values) -> None:
        for node in nodes:
            values[node] = self._value(node, values)

    def _value(self, node: fx.Node, values: Values) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":
            return self._model.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            found: Any = self._model.model
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found
        function: Any = node.target
        return function(*args, **kwargs)

    def _read_after(self, depth: int) -> set[fx.Node]:
        """The nodes that the stage at ``depth`` or a later one reads."""
        later = [node for stage in self._stages[depth:] for node in stage]
        return {source for node in later for source in node.all_input_nodes} | {self._output}

    def _read_early(self, depth: int) -> dict[fx.Node, int]:
        """The nodes of a stage that do not depend on the stage before, each with the depth they depend on."""
        stage_of = {node: index for index, stage in enumerate(self._stages) for node in stage}
        reach: dict[fx.Node, int] = {}
        for node in self._stages[depth]:
            sources = node.all_input_nodes
            reach[node] = max((reach.get(s, stage_of.get(s, -1) + 1) for s in sources), default=0)
        return {node: needed for node, needed in reach.items() if needed < depth}


def _cut(graph: fx.Graph, groups: Groups) -> tuple[list[fx.Node], list[list[fx.Node]]]:
    """The nodes before the first layer, and those of each group up to the first layer of the next one."""
    group_of = {layer: index for index, layers in enumerate(groups.values()) for layer in layers}
    parts: list[list[fx.Node]] = [[] for _ in range(len(groups) + 1)]
    current = -1
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module" and node.target in group_of:
            if group_of[node.target] < current:
                raise ModelError(
                    f"layer {node.target!r} runs after a layer of a later group; put both in one group"
                )
            current = group_of[node.target]
        parts[current + 1].append(node)
    return parts[0], parts[1:]
