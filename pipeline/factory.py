"""A constructor with the arguments that settings give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wattbit.errors import ConfigError, WattbitError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Factory(Generic[T]):
    """Builds an object as often as it is called; can be sent to another process.

    Attributes:
        target: The constructor or function, from the top of its module.
        arguments: Plain values, or values that can be pickled.
    """

    target: Callable[..., T]
    arguments: Mapping[str, Any]

    def __call__(self, *first: Any, **more: Any) -> T:
        """Build one; ``more`` adds arguments or replaces them, ``first`` come before all.

        Raises:
            ConfigError: If the settings do not fit; an error raised on purpose comes out as it was raised.
        """
        try:
            return self.target(*first, **{**self.arguments, **more})
        except WattbitError:
            raise
        except Exception as error:
            name = f"{self.target.__module__}.{self.target.__qualname__}"
            raise ConfigError(f"{name}: {error}; check its settings") from error
