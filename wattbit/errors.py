"""The exceptions wattbit raises on purpose.

Every message names the value that was refused, the limit it broke and the remedy, in one line, so that an
entry point can print it as it is.

::

    WattbitError
    ├── PrecisionError     an unknown precision, or one that a layer or device does not support
    ├── PlanError          a plan that is malformed or made for another model
    ├── ModelError         a model that cannot be profiled: NaN weights, no switchable layer, ...
    ├── DataError          a data set that is missing, or a split that is empty or too small
    ├── MeterError         an energy meter that cannot measure
    ├── GuardrailError     limits that make no sense, such as a tolerance of 0
    ├── BundleError        a bundle that is missing, corrupt, or made for another model
    ├── AuditError         an audit log that was edited, reordered or truncated
    ├── ConfigError        a setting that does not exist or does not fit
    └── OutputError        a folder or file that cannot be written
"""


class WattbitError(Exception):
    """Base of all errors that wattbit raises on purpose."""


class PrecisionError(WattbitError):
    """An unknown precision, or one that a layer or a device does not support."""


class PlanError(WattbitError):
    """A plan that is malformed or made for another model."""


class ModelError(WattbitError):
    """A model that cannot be profiled or run: NaN weights, no switchable layer."""


class DataError(WattbitError):
    """A data set that is missing, or a split that is empty or too small."""


class MeterError(WattbitError):
    """An energy meter that cannot measure. Never replaced by a reading of 0 J."""


class GuardrailError(WattbitError):
    """Limits that make no sense, such as a tolerance of 0."""


class BundleError(WattbitError):
    """A bundle that is missing, corrupt, or made for another model."""


class AuditError(WattbitError):
    """An audit log that was edited, reordered or truncated."""


class ConfigError(WattbitError):
    """A setting that does not exist, or whose value does not fit."""


class OutputError(WattbitError):
    """A folder or a file that cannot be written."""


def one_line(error: BaseException) -> str:
    """The type and the text of any error on one line, as messages and logs quote it."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}".rstrip(": ")


def require_at_least(least: float, **values: float) -> None:
    """Check settings, given by name.

    Raises:
        ConfigError: If one is below ``least`` or no number.
    """
    for name, value in values.items():
        if not value >= least:
            raise ConfigError(f"{name} is {value}, must be at least {least}")
