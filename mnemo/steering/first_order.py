"""Are steering and guidance the same thing when little of either is given?

Let p be what the plain model says next, a = J v the change of its logits for each unit of the steering vector v (J is
their derivative with respect to the stream at the site), and b what one unit of guidance adds to them. Both are
exponential families in the dose to first order: d log p_g(t) / dg = a_t - E_p[a] for steering by g, and likewise with b
for guidance by w (exactly, at any w). So

    KL(p_g || p) = g^2 Var_p(a) / 2 + O(g^3),        KL(p_w || p) = w^2 Var_p(b) / 2 + O(w^3),

and where both are at the same small distance e from p, that is g sd_p(a) = w sd_p(b) = sqrt(2 e),

    KL(p_g || p_w) = Var_p(g a - w b) / 2 + O(e^1.5) = 2 e (1 - r),        r = the correlation of a and b under p.

They agree to first order exactly if r = 1: if the vector changes the logits as the pairs' outputs differ, up to a
constant. Nothing makes that so; `first_order` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.model import batch_inputs
from mnemo.prompts import Prompt
from mnemo.steering.methods import Guidance, Steering


@dataclass(frozen=True)
class FirstOrder:
    """Both methods at dose 0, prompt by prompt.

    Attributes:
        correlation: r above, in [-1, 1].
        spread_steering: sd_p(a), nats for each unit of dose.
        spread_guidance: sd_p(b), likewise.
    """

    correlation: Float[Tensor, " prompt"]
    spread_steering: Float[Tensor, " prompt"]
    spread_guidance: Float[Tensor, " prompt"]


def first_order(steering: Steering, guidance: Guidance, *, prompts: Sequence[Prompt]) -> FirstOrder:
    """Compare what the first bit of steering and of guidance does to the next token of each prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids, mask = batch_inputs([prompt.tokens for prompt in prompts], device=steering.model.device)

    # One dose moves every logit: d logits / d dose is what <d logits / d dose, u> depends on u by.
    dose = torch.zeros((), device=ids.device, dtype=steering.model.dtype, requires_grad=True)
    with torch.enable_grad(), steering.at(dose, width):
        logits = steering.model.bridge(ids, attention_mask=mask)[:, -1].double()
        u = torch.zeros_like(logits, requires_grad=True)
        (slope,) = torch.autograd.grad((logits * u).sum(), dose, create_graph=True)
        (a,) = torch.autograd.grad(slope, u)
    b = guidance.contrast(ids[:, :0]).double()
    p = logits.detach().softmax(-1)
    a, b = (x - (p * x).sum(-1, keepdim=True) for x in (a, b))
    spread_a, spread_b = ((p * x.square()).sum(-1).sqrt() for x in (a, b))
    correlation = (p * a * b).sum(-1) / (spread_a * spread_b)
    return FirstOrder(correlation.cpu(), spread_a.cpu(), spread_b.cpu())
