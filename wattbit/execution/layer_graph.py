"""A model's forward pass as steps that can start at any switchable layer, given the values kept there.

The model is traced with `torch.fx`: a switchable layer is one step, and so is every module that holds none.
The steps call the model's own modules, so kernels, folded BatchNorms, chains and hooks work as always.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from wattbit.errors import ModelError
from wattbit.model_inputs import Inputs, map_tensors

Values = dict[fx.Node, Any]
"""What the steps have computed so far and later steps still read."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One step: what it computes, and the values that no later step reads."""

    node: fx.Node
    run: Callable[[Values], Any]
    forgets: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class LayerGraph:
    """The steps of a forward pass, cut before the first call of each switchable layer.

    Attributes:
        layers: Indices of the switchable layers, in the order in which they are first called.
        calls: How often switchable layers are called in each part, as many as ``layers``: part ``k`` begins
            with the first call of ``layers[k]`` and ends before that of ``layers[k + 1]``.
        constants: Tensors made while tracing, which the steps read.
    """

    layers: tuple[int, ...]
    calls: tuple[int, ...]
    constants: tuple[Tensor, ...]
    _skeleton: Any
    _start: fx.Node
    _result: fx.Node
    _head: tuple[_Step, ...]
    _parts: tuple[tuple[_Step, ...], ...]

    def fits(self, batch: Inputs) -> bool:
        """True if ``batch`` is nested as the traced example was, with the same values beside tensors."""
        return bool(structure_of(batch) == self._skeleton)

    def begin(self, batch: Inputs) -> Values:
        """The values before the first switchable layer."""
        values: Values = {self._start: batch}
        _take(self._head, values)
        return values

    def run(self, part: int, values: Values) -> None:
        """Take the steps of one part; ``values`` is changed."""
        _take(self._parts[part], values)

    def output(self, values: Values) -> Any:
        """What the model returns, after the last part."""
        return values[self._result]


def _take(steps: tuple[_Step, ...], values: Values) -> None:
    for step in steps:
        values[step.node] = step.run(values)
        for node in step.forgets:
            del values[node]


def trace_layers(model: nn.Module, layer_names: Sequence[str], example: Inputs) -> LayerGraph:
    """Trace ``model``, which may be attached.

    Must not run while another thread runs modules: tracing replaces how modules are called.

    Args:
        model: The model.
        layer_names: Names of its switchable layers, by index.
        example: Inputs as the model will get them; values other than tensors are fixed.

    Raises:
        ModelError: If it cannot be traced, with the reason.
    """
    # A user's forward may fail in any way when it is given proxies instead of tensors.
    try:
        with torch.inference_mode(False), torch.no_grad():
            root = _Root(_stateless_copy(model), example)
            layers = {root.model.get_submodule(name): index for index, name in enumerate(layer_names)}
            graph = _LayerTracer(layers).trace(root)
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        raise ModelError(
            f"the forward pass cannot be traced ({type(error).__name__}: {said:.200}); "
            "each plan runs from its first layer instead, which takes longer and gives the same"
        ) from error
    return _Cutter(graph, root, model, layers).cut(structure_of(example))


# --- tracing --------------------------------------------------------------------------------------------


class _Root(nn.Module):
    """Calls the model with a whole batch as the only argument, taken apart as `call_model` does."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model = model
        # Behind a function, because tracers look for tensors in attributes.
        self._example: Callable[[], Inputs] = lambda: example

    def forward(self, batch: Any) -> Any:
        """Map a batch to what the model returns."""
        example = self._example()
        inputs = _like(example, batch)
        if isinstance(example, Tensor):
            return self.model(inputs)
        return self.model(**inputs) if isinstance(example, dict) else self.model(*inputs)


class _LayerTracer(fx.Tracer):
    """Looks into modules as far as switchable layers lie in them."""

    def __init__(self, layers: dict[nn.Module, int]) -> None:
        super().__init__()
        self._layers = layers.keys()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True if ``m`` is a switchable layer or holds none."""
        return m in self._layers or self._layers.isdisjoint(m.modules())


def _stateless_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters: what a forward keeps while it is traced stays out of the model."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _like(example: Inputs, proxy: Any) -> Any:
    """``example`` with its tensors replaced by what ``proxy`` holds in their places."""

    def look(path: tuple[Any, ...], leaf: Any) -> Any:
        return reduce(lambda held, key: key.get(held), path, proxy) if leaf is Tensor else leaf

    return pytree.tree_map_with_path(look, _marked(example))


def structure_of(inputs: Inputs) -> Any:
    """How ``inputs`` are nested, with the values beside tensors."""
    return pytree.tree_flatten(_marked(inputs))


def _marked(inputs: Inputs) -> Any:
    """``inputs`` with a mark in place of each tensor."""
    return map_tensors(inputs, lambda _: Tensor)


# --- cutting into parts ---------------------------------------------------------------------------------


class _Cutter:
    """Turns a traced graph into steps on the modules of ``model``; the graph was traced on a copy."""

    def __init__(self, graph: fx.Graph, root: _Root, model: nn.Module, layers: dict[nn.Module, int]) -> None:
        self._nodes = list(graph.nodes)
        self._root = root
        self._model = model
        self._layers = layers
        self._attributes = {node: self._attribute(node) for node in self._nodes if node.op == "get_attr"}

    def cut(self, skeleton: Any) -> LayerGraph:
        """The graph in parts."""
        parts: list[list[_Step]] = [[]]
        order: list[int] = []
        calls: Counter[int] = Counter()
        start, *computed = (node for node in self._nodes if node.op != "get_attr")
        unread = dict(self._unread_after())
        for node in computed:
            layer = self._layer(node)
            if layer is not None and layer not in order:
                order.append(layer)
                parts.append([])
            calls[len(parts) - 2] += layer is not None
            parts[-1].append(_Step(node, self._runner(node), unread.get(node, ())))
        if len(order) < len(self._layers):
            raise ModelError(
                f"the traced forward pass runs {len(order)} of {len(self._layers)} switchable layers; "
                "each plan runs from its first layer instead, which takes longer and gives the same"
            )
        return LayerGraph(
            layers=tuple(order),
            calls=tuple(calls[part] for part in range(len(order))),
            constants=tuple(
                read() for node, read in self._attributes.items() if not node.target.startswith("model.")
            ),
            _skeleton=skeleton,
            _start=start,
            _result=computed[-1],
            _head=tuple(parts[0]),
            _parts=tuple(map(tuple, parts[1:])),
        )

    def _layer(self, node: fx.Node) -> int | None:
        if node.op != "call_module":
            return None
        return self._layers.get(self._root.get_submodule(str(node.target)))

    def _unread_after(self) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
        """Each step with the values that no later step reads; the result is kept."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self._nodes[:-1]:
            last[node] = node
            last.update(dict.fromkeys(node.all_input_nodes, node))
        for read in self._nodes[-1].all_input_nodes:
            last[read] = self._nodes[-1]
        unread: dict[fx.Node, list[fx.Node]] = {}
        for node, reader in last.items():
            if node not in self._attributes:
                unread.setdefault(reader, []).append(node)
        for reader, nodes in unread.items():
            yield reader, tuple(nodes)

    def _owner(self, target: str) -> tuple[nn.Module, str]:
        path, _, name = target.rpartition(".")
        if path == "model" or path.startswith("model."):
            return self._model.get_submodule(path.removeprefix("model").removeprefix(".")), name
        return self._root.get_submodule(path), name

    def _attribute(self, node: fx.Node) -> Callable[[], Any]:
        owner, name = self._owner(str(node.target))
        return lambda: getattr(owner, name)

    def _runner(self, node: fx.Node) -> Callable[[Values], Any]:
        function = self._function(node)
        args, kwargs, attributes = node.args, node.kwargs, self._attributes
        if len(args) == 1 and not kwargs:
            (only,) = args
            if isinstance(only, fx.Node) and only not in attributes:
                return lambda values: function(values[only])  # most modules: nothing to look through

        def run(values: Values) -> Any:
            def look(read: fx.Node) -> Any:
                return attributes[read]() if read in attributes else values[read]

            return function(*map_arg(args, look), **map_arg(kwargs, look))

        return run

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_function" and callable(node.target):
            return node.target
        target = str(node.target)
        if node.op == "call_method":
            return _method(target)
        if node.op == "call_module":
            owner, name = self._owner(target)
            return owner.get_submodule(name)
        if node.op == "output":
            return lambda result: result
        raise ModelError(f"the traced forward pass holds {node.op!r}, which is no step; call no tracer in it")


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)
