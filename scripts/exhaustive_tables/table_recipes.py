"""Which networks have a table of all their plans, and how their layers are grouped."""

from __future__ import annotations

from dataclasses import dataclass

from envs.grouping import Groups

PRECISIONS = ("fp16", "int8", "int4", "int3")
"""The precisions of a table, the reference first."""


@dataclass(frozen=True, slots=True)
class TableRecipe:
    """How a table is made.

    Attributes:
        workload: Option of the configuration group ``workload``.
        groups: Layers that change precision together, in execution order.
    """

    workload: str
    groups: Groups


def _block(name: str) -> dict[str, tuple[str, ...]]:
    attention = tuple(f"{name}.attention.{role}" for role in ("query", "key", "value", "output"))
    return {
        f"{name}.attention": attention,
        f"{name}.ffn.up": (f"{name}.ffn.up",),
        f"{name}.ffn.down": (f"{name}.ffn.down",),
    }


RECIPES = {
    "fashion_resnet8": TableRecipe(
        "fashion_mnist",
        {
            "stem": ("stem",),
            "stage1.conv1": ("stage1.conv1",),
            "stage1.conv2": ("stage1.conv2",),
            "stage2.conv1": ("stage2.conv1",),
            "stage2.conv2": ("stage2.conv2", "stage2.shortcut"),
            "stage3.conv1": ("stage3.conv1",),
            "stage3.conv2": ("stage3.conv2", "stage3.shortcut"),
            "head": ("head",),
        },
    ),
    "fashion_transformer": TableRecipe(
        "fashion_transformer",
        {"embed": ("embed",), **_block("block1"), **_block("block2"), "head": ("head",)},
    ),
}
