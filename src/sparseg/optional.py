"""Packages that are not installed with sparseg itself: imported here only, where they are asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from sparseg.errors import MissingExtraError


def import_optional(module: str, extra: str, *, purpose: str = "") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Full name, e.g. `torch.utils.tensorboard`.
        extra: The extra of sparseg that installs it.
        purpose: What it is needed for, for the message.

    Raises:
        MissingExtraError: it is not installed, or something it needs is not.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"{purpose or module} needs an optional package",
            received=f"no module {missing}",
            remedy=f"install it with: pip install 'sparseg[{extra}]'",
            code=f"extra-{extra}",
        ) from error
