"""Images with NaN or infinities, read so that such voxels can be told from all others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# Readers put this in the place of what is not finite; no real measurement reaches it.
NONFINITE_MARK = float(np.finfo(np.float32).max)
_LOG = logging.getLogger("sparseg")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the readers' word on the value they fill in: it is only a mark, nothing is made from it."""

    def no_warning(record: logging.LogRecord) -> bool:
        return record.levelno != logging.WARNING

    _LOG.addFilter(no_warning)
    try:
        yield
    finally:
        _LOG.removeFilter(no_warning)
