"""What all adapters share: reading a foreign state, renaming it, comparing names and shapes strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from sparseg.checkpoints.key_tables import KeyTable, reason, reverse, translate
from sparseg.errors import CheckpointError

_LISTED = 20


@dataclass(frozen=True)
class Renamed:
    """A foreign state under our names.

    Attributes:
        found: Tensors by our name.
        origin: From our name to the foreign one.
        dropped: Foreign keys left out on purpose, with the reason.
        unknown: Foreign keys that no table explains.
    """

    found: dict[str, Tensor]
    origin: dict[str, str]
    dropped: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]


def read_foreign_state(path: Path) -> dict[str, Tensor]:
    """Read a foreign checkpoint without ever running code from it (`weights_only=True`).

    Returns:
        Its tensors by name, as `unwrap` gives them.

    Raises:
        CheckpointError: missing, unreadable, or holding more than plain weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError("the checkpoint file must exist", where=path, remedy="check the path") from None
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(
            "a foreign checkpoint must be readable as plain tensors",
            # Torch goes on to advise loading code with the weights.
            received=str(error).partition("\n")[0].partition(" Re-running")[0],
            remedy="save its `state_dict()` alone with torch.save",
            where=path,
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "a checkpoint must hold a state_dict",
            received=type(content).__name__,
            where=path,
            remedy="give the file that the training wrote",
        )
    return unwrap(content)


def unwrap(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors by name, from under an outer `state_dict` key and without a leading `module.`.

    Raises:
        CheckpointError: empty, or values that are no tensors.
    """
    inner = state_dict.get("state_dict", state_dict)
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(
            "a state_dict must map names to tensors",
            received=type(inner).__name__,
            remedy="pass the inner state_dict",
        )
    others = [str(key) for key, value in inner.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            "a state_dict must map names to tensors",
            received=listing(others),
            remedy="hand over the model's state_dict alone",
        )
    if all(key.startswith("module.") for key in inner):
        return {key.removeprefix("module."): value for key, value in inner.items()}
    return dict(inner)


def rename(state: Mapping[str, Tensor], table: KeyTable, dropped: KeyTable = ()) -> Renamed:
    """Bring foreign names to ours; decides nothing about what is missing."""
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left_out: list[tuple[str, str]] = []
    unknown: list[str] = []
    for key, value in state.items():
        why = reason(key, dropped)
        ours = translate(key, table)
        if why is not None:
            left_out.append((key, why))
        elif ours is None or ours in found:
            unknown.append(key)
        else:
            found[ours] = value
            origin[ours] = key
    return Renamed(found, origin, tuple(left_out), tuple(unknown))


def load_exactly(module: nn.Module, renamed: Renamed, table: KeyTable, *, where: str) -> None:
    """Fill `module`: every parameter once, nothing left over.

    Args:
        module: Network to fill; untouched when an error is raised.
        renamed: State under this module's names.
        table: The table it was renamed by, so that messages speak in foreign names.
        where: Kind of checkpoint, for messages.

    Raises:
        CheckpointError: unknown, missing or wrongly shaped entries; the message lists them.
    """
    target = module.state_dict()
    found = renamed.found
    back = reverse(table)
    refuse(
        where,
        missing=[translate(key, back) or key for key in target if key not in found],
        unknown=[*renamed.unknown, *(renamed.origin[key] for key in found if key not in target)],
        shapes=wrong_shapes(renamed, target),
    )
    module.load_state_dict(found)


def wrong_shapes(renamed: Renamed, target: Mapping[str, Tensor]) -> list[str]:
    """Return a line for every entry whose shape is not the target's."""
    return [
        f"{renamed.origin[key]} {tuple(value.shape)} instead of {tuple(target[key].shape)}"
        for key, value in renamed.found.items()
        if key in target and value.shape != target[key].shape
    ]


def refuse(
    where: str, *, missing: Sequence[str] = (), unknown: Sequence[str] = (), shapes: Sequence[str] = ()
) -> None:
    """Raise where anything is listed.

    Raises:
        CheckpointError: lists what is missing, unknown or wrongly shaped.
    """
    parts = {"missing": missing, "unknown": unknown, "wrong shape": shapes}
    found = [f"{kind}: {listing(names)}" for kind, names in parts.items() if names]
    if found:
        raise CheckpointError(
            "names and shapes must be exactly those of the model",
            received=", ".join(found),
            remedy="check the kind of checkpoint and the settings given beside it",
            where=where,
        )


def shape_of(state: Mapping[str, Tensor], key: str, rank: int, *, where: str) -> tuple[int, ...]:
    """Return the shape of an entry that a size is read from.

    Raises:
        CheckpointError: not there, or not of `rank` axes.
    """
    if key not in state:
        refuse(where, missing=[key])
    shape = tuple(state[key].shape)
    if len(shape) != rank:
        refuse(where, shapes=[f"{key} {shape} instead of {rank} axes"])
    return shape


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Return how many different numbers follow `prefix` in `keys`."""
    return len({key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)})


def listing(names: Sequence[str], limit: int = _LISTED) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
