"""Every error sparseg raises on purpose.

    SparsegError
    ├── InputError            what the user handed over is not usable (exit code 2)
    │   ├── VolumeError       an image or label file cannot be trusted (truncated, not finite, ...)
    │   ├── GeometryError     grids, orientations or spacings that are missing, contradictory or do not match
    │   ├── LabelError        label ids or names that are not what the model or dataset declares
    │   ├── DatasetError      a dataset folder or its description is not usable
    │   ├── CheckpointError   a model folder or foreign checkpoint does not fit
    │   ├── ShapeError        tensor or window sizes that break a rule (also a ValueError)
    │   └── ConfigError       a setting is unknown or out of range (also a ValueError)
    ├── ResourceError         memory or processes of the machine did not suffice
    ├── NumericsError         a non-finite number appeared where a result would have been built on it
    ├── FetchError            sample data could not be fetched or is not the expected bytes
    └── MissingExtraError     an optional package is not installed (also an ImportError)

Each message is one line: `where: rule; received value; remedy`.
"""

from __future__ import annotations


class SparsegError(Exception):
    """Base of all errors raised by sparseg.

    Args:
        rule: What must hold, in words.
        received: The offending value, if there is one.
        remedy: What the user can do about it.
        where: The file or field concerned.
        code: Short stable identifier for reports and tests.
    """

    def __init__(
        self,
        rule: str,
        *,
        received: object = None,
        remedy: str = "",
        where: object = "",
        code: str = "",
    ) -> None:
        self.rule = rule
        self.received = received
        self.remedy = remedy
        self.where = str(where)
        self.code = code or type(self).__name__
        head = f"{self.where}: {rule}" if self.where else rule
        parts = [head]
        if received is not None:
            parts.append(f"received {received}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(part.replace("\n", " ") for part in parts))


class InputError(SparsegError):
    """What the user handed over is not usable."""


class VolumeError(InputError):
    """An image or label file cannot be trusted."""


class GeometryError(InputError):
    """Grids, orientations or spacings are missing, contradictory or do not match."""


class LabelError(InputError):
    """Label ids or names are not what the model or dataset declares."""


class DatasetError(InputError):
    """A dataset folder or its description is not usable."""


class CheckpointError(InputError):
    """A model folder or foreign checkpoint does not fit."""


class ShapeError(InputError, ValueError):
    """Tensor or window sizes break a rule."""


class ConfigError(InputError, ValueError):
    """A setting is unknown or out of range."""


class ResourceError(SparsegError):
    """Memory or processes of the machine did not suffice."""


class NumericsError(SparsegError):
    """A non-finite number appeared where a result would have been built on it."""


class FetchError(SparsegError):
    """Sample data could not be fetched or is not the expected bytes."""


class MissingExtraError(SparsegError, ImportError):
    """An optional package is not installed."""
