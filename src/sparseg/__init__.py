"""sparseg: fast 3-D medical image segmentation with token sparsification.

Heavy imports (torch, MONAI) happen on first use of a name, so that `import sparseg` and the command line start fast.
"""

from __future__ import annotations

__version__ = "0.1.0"
