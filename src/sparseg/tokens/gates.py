"""Independent gates (DynamicViT: Rao et al., NeurIPS 2021): every token is kept or dropped on its own.

Nothing fixes the number kept, so training removes no token: dropped ones are hidden from the attention of the
others (`layers.attention.masked_attention`), and a loss on the share kept (`training.selection.ratio_loss`)
leads it to what evaluation keeps, which takes the highest keep probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseg.tokens.select import gumbel_noise


def open_gates(
    logits: Tensor,
    *,
    temperature: float,
    noise_scale: float,
    passed: Tensor | None = None,
    protected: Tensor | None = None,
) -> Tensor:
    """Decide for each token by Gumbel-softmax over (keep, drop); the gradient is that of the soft decision.

    With two choices the softmax over (keep + g1, drop + g2) is sigmoid((logit + g1 - g2)/tau), logit being
    keep minus drop (section 3.2 of the paper). A token that an earlier stage dropped stays dropped.

    Args:
        logits: `[B, n]`, log-odds of keeping.
        temperature: tau > 0.
        noise_scale: Factor on the Gumbel noise; 0 keeps what is likelier kept than dropped.
        passed: `[B, n]` decisions of earlier stages, or None.
        protected: bool `[B, n]`, tokens kept in any case if they are still there; or None.

    Returns:
        `[B, n]`, 0 or 1 (up to rounding), differentiable in the logits and in `passed`.
    """
    if noise_scale > 0:
        logits = logits + noise_scale * (gumbel_noise(logits) - gumbel_noise(logits))
    soft = torch.sigmoid(logits / temperature)
    hard = logits.detach() > 0
    if protected is not None:
        hard = hard | protected
    decision = hard.to(soft.dtype) + (soft - soft.detach())
    return decision if passed is None else passed * decision
