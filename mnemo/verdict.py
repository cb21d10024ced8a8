"""From interventions to a verdict: what each fact's trials say, how sure that is, and which tier it is."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import special, stats
from torch import Tensor

from mnemo.interventions import Trials

Tier = Literal["mnemonic", "shared-intermediate", "rote", "unsure", "not-recalled"]

# A fact counts as moved by its concept when more than half of the swaps give the answer predicted beforehand, over and
# above the random directions; as untouched when fewer than a quarter do. Between the two nothing is claimed.
MOVED, UNTOUCHED = 0.5, 0.25
FALSE_DISCOVERIES = 0.05
# P(mnemonic | strength) = expit(SLOPE * strength - OFFSET), fitted by benchmarks/calibration.py to organisms for
# development alone (Platt 1999, "Probabilistic outputs for support vector machines").
SLOPE, OFFSET = 13.6, 6.3


def weigh(trials: Trials, recall: Float[Tensor, " fact"]) -> pd.DataFrame:
    """Return the evidence of each fact, a row each.

    Columns:
        swap_success: share of swaps that give the answer predicted beforehand.
        swap_low, swap_high: its 95% interval (Clopper and Pearson 1934), if swaps of a fact succeed independently.
        leakage: share of the successful swaps that also succeed when the change goes straight to the final norm: there
            the state holds the answer rather than a concept. 0 away from the last position; NaN without a success.
        swap_control: share of random directions of the same norm that give it.
        random_flips: share of random directions that change the answer at all.
        prompt_swap, prompt_control: as `swap_success` and `swap_control`, with vectors from the concepts' own prompts.
        sufficiency: probability of the answer with the mean state plus the concept vector in place of the state.
        sufficiency_control: the same with another concept's vector.
        ablation_drop: probability lost when the concept vector is taken away.
        ablation_control: the same with a random vector of that norm.
        same_concept: probability of the answer when another cue of the same concept stands in for the concept's
            vector, and
        same_answer: when swapped to other concepts with the same answer, the mean over them. Both must change nothing;
            NaN where untried.
        swap_without_answer: as `swap_success`, with the answers' own directions taken out of the vectors.
        whole_swap: share of swaps of the whole state, which overwrite the cue, that give the predicted answer.
        mediated_fraction: share of what another cue does to the logit difference between the fact's answer and the
            predicted one that swapping the concept alone does at this site: 1 where all goes through the concept, 0
            where nothing does, between for redundant routes. NaN where no other cue evokes a target.
        strength: the smaller of what swaps do (mean probability of the predicted answers, minus that under random
            directions; with the vectors, of cues or of prompts, that do more) and of what the concept suffices for
            (sufficiency minus its control). Each alone is fooled by some kind of fact.
        p_value: Fisher's exact test, one-sided, of swaps against random directions giving the predicted answer; of the
            two sorts of vectors the smaller one, doubled (Bonferroni).

    Args:
        trials: the interventions.
        recall: probability of each fact's answer, untouched.
    """
    tried = trials.tried.numpy()

    def hit(top: Tensor) -> np.ndarray:
        """Whether an answer is the one predicted beforehand; `top` may have several for each target."""
        extra = (...,) + (None,) * (top.dim() - 2)
        return ((top == trials.predicted[extra]) & trials.tried[extra]).numpy()

    hits, random_hits = hit(trials.swap_top), hit(trials.random_top)
    prompt_hits, prompt_random_hits = hit(trials.from_prompt_top), hit(trials.prompt_random_top)
    direct = (trials.direct_top == trials.predicted).numpy()
    n, n_random = tried.sum(1), tried.sum(1) * random_hits.shape[2]

    def share(count: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.where(of > 0, count / np.maximum(of, 1), np.nan)

    def mean(probability: Tensor) -> np.ndarray:
        values = probability.flatten(1).numpy()
        known = np.isfinite(values)
        return share(np.where(known, values, 0).sum(1), known.sum(1))

    low, high = _binomial_interval(hits.sum(1), n)
    bare, whole = trials.without_answer_top.numpy(), trials.whole_top.numpy()
    predicted = trials.predicted.numpy()
    swapped = np.fmax(
        mean(trials.swap_probability) - mean(trials.random_probability),
        mean(trials.from_prompt_probability) - mean(trials.prompt_random_probability),
    )
    p_values = [
        _fisher(found.sum(1), n, control.sum((1, 2)), n_random)
        for found, control in ((hits, random_hits), (prompt_hits, prompt_random_hits))
    ]
    sufficiency, given_away = trials.sufficient.numpy(), trials.sufficient_control.numpy()
    random_tops = np.where(tried[..., None], trials.random_top.numpy(), -1)
    return pd.DataFrame(
        {
            "swap_success": share(hits.sum(1), n),
            "swap_low": low,
            "swap_high": high,
            "leakage": share((hits & direct).sum(1), hits.sum(1)),
            "swap_control": share(random_hits.sum((1, 2)), n_random),
            "random_flips": share(_flips(random_tops, trials).sum((1, 2)), n_random),
            "prompt_swap": share(prompt_hits.sum(1), n),
            "prompt_control": share(prompt_random_hits.sum((1, 2)), n_random),
            "sufficiency": sufficiency,
            "sufficiency_control": given_away,
            "ablation_drop": (recall - trials.ablated).numpy(),
            "ablation_control": (recall - trials.ablated_control).numpy(),
            "same_concept": trials.same_concept.numpy(),
            "same_answer": trials.same_answer.numpy(),
            "swap_without_answer": share(((bare == predicted) & (bare >= 0)).sum(1), (bare >= 0).sum(1)),
            "whole_swap": share(((whole == predicted) & (whole >= 0)).sum(1), (whole >= 0).sum(1)),
            "mediated_fraction": _mediated(trials),
            "strength": np.clip(np.fmin(swapped, sufficiency - given_away), 0, 1) * (n > 0),
            "p_value": np.minimum(1, 2 * np.fmin(*p_values)),
        }
    )


def _mediated(trials: Trials) -> np.ndarray:
    """Ratio of sums over the targets, so that a target whose cue changes little does not blow the share up."""
    known = trials.cue_effect.isfinite()
    swap, cue = ((effect.nan_to_num() * known).sum(1) for effect in (trials.swap_effect, trials.cue_effect))
    return torch.where(known.any(1) & (cue > 0), swap / cue, torch.nan).numpy()


def _flips(random_tops: np.ndarray, trials: Trials) -> np.ndarray:
    return (random_tops != trials.answers.numpy()[:, None, None]) & (random_tops >= 0)


def _binomial_interval(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that tails of 2.5% leave, as quantiles of beta distributions; NaN without a trial."""
    tail = 0.025
    low = np.where(hits > 0, stats.beta.ppf(tail, np.maximum(hits, 1), n - hits + 1), 0.0)
    high = np.where(hits < n, stats.beta.ppf(1 - tail, hits + 1, np.maximum(n - hits, 1)), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def _fisher(hits: np.ndarray, n: np.ndarray, control_hits: np.ndarray, n_control: np.ndarray) -> np.ndarray:
    """P(at least so many hits among the swaps | hits fall on swaps and controls alike): hypergeometric tail."""
    return stats.hypergeom.sf(hits - 1, n + n_control, hits + control_hits, n)


def calibrated(strength: pd.Series) -> pd.Series:
    """Return the probability that facts of this strength are mnemonic, as often as they are in organisms."""
    return pd.Series(special.expit(SLOPE * strength.astype(float) - OFFSET), index=strength.index)


def judge(evidence: pd.DataFrame, *, swaps_work: bool = True) -> pd.DataFrame:
    """Return the evidence with a `q_value` (Benjamini and Hochberg 1995, over all facts judged), a `score` (the
    probability, by its strength, that a fact is recalled through its concept) and a `verdict`.

    mnemonic: swaps move the answer as predicted, with vectors from cues or from the concepts' own prompts, the concept
    suffices for it, and vectors from prompts do move it (the second hop is the one that the concept's prompt uses);
    shared-intermediate: all but the last. (Where most cues of a concept do other things beside evoking it, the vectors
    of cues are useless, and those of prompts are not.) Where the concept was edited (`mnemo.editing.edit_test`),
    whether the fact follows decides that last question instead: an edit tests the second hop itself.
    rote: moving the concept moves nothing; unsure: anything between.

    The other controls are evidence to look at and decide nothing here (`mnemo.invented` asks for `same_answer`). In two
    of nine trained organisms `same_answer` fails for a fifth of the planted mnemonics, and over all nine it fails for
    one negative that nothing else stops. In a trained organism, `swap_without_answer` halves for planted mnemonics (the
    second hop reads what concepts with one answer have in common), `same_concept` fails for one in a hundred of them
    and for no negative, and `whole_swap` moves what it should not.

    Args:
        evidence: as `weigh` gives it, with `edit_follows` where concepts were edited.
        swaps_work: whether swaps at this site were seen to move any facts. Without this positive control a swap that
            moves nothing may be one with a useless vector, and no fact is called rote.
    """
    judged = evidence.copy()
    judged["score"] = calibrated(judged["strength"])
    known = judged["p_value"].notna()
    judged["q_value"] = np.nan
    if known.any():
        judged.loc[known, "q_value"] = stats.false_discovery_control(judged.loc[known, "p_value"])
    by_cues = judged["swap_success"] - judged["swap_control"] > MOVED
    by_prompts = judged["prompt_swap"] - judged["prompt_control"] > MOVED
    moved = (by_cues | by_prompts) & (judged["q_value"] < FALSE_DISCOVERIES)
    carried = moved & (judged["sufficiency"] - judged["sufficiency_control"] > MOVED)
    same_hop = judged["prompt_swap"] > MOVED
    if "edit_follows" in judged:
        same_hop = same_hop.where(judged["edit_follows"].isna(), judged["edit_follows"] > MOVED)
    untouched = (judged[["swap_success", "prompt_swap"]].max(axis=1) < UNTOUCHED) & swaps_work
    judged["verdict"] = np.select(
        [carried & same_hop, carried, untouched], ["mnemonic", "shared-intermediate", "rote"], "unsure"
    )
    return judged
