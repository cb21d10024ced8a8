"""From interventions to a verdict: what each fact's trials say, how sure that is, and which tier it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import special, stats
from torch import Tensor

from mnemo.tested_facts import Swaps
from mnemo.trials import DosedSwaps, Trials

Tier = Literal["mnemonic", "shared-intermediate", "rote", "unsure", "not-recalled"]

# A fact counts as moved by its concept when more than half of the swaps give the answer predicted beforehand, over and
# above the random directions; as untouched when fewer than a quarter do. Between the two nothing is claimed.
MOVED, UNTOUCHED = 0.5, 0.25
FALSE_DISCOVERIES = 0.05
BEYOND_DOUBT = 0.01  # p-value below which a fact that is moved gets no closer look
FEWEST = 3  # targets; if each swap of each sort worked half of the time, none would once in 64 times
SORTS = 2  # of vectors that swaps are tried with, those of cues and those of prompts
# Columns of an effect and of its control, in the first look and in closer ones.
_EFFECTS = {
    "swap": (("swap_success", "swap_control"), ("dosed_swap", "dosed_control")),
    "prompt_swap": (("prompt_swap", "prompt_control"), ("dosed_prompt_swap", "dosed_prompt_control")),
    "sufficiency": (("sufficiency", "sufficiency_control"), ("dosed_sufficiency", "dosed_sufficiency_control")),
}
# P(mnemonic | strength) = expit(SLOPE * strength - OFFSET), fitted by benchmarks/calibration.py to organisms for
# development alone (Platt 1999, "Probabilistic outputs for support vector machines").
SLOPE, OFFSET = 14.7, 6.4


def weigh(trials: Trials, recall: Float[Tensor, " fact"]) -> pd.DataFrame:
    """Return the evidence of each fact, a row each.

    Columns:
        targets: to how many other concepts it was swapped.
        swap_success: share of swaps that give the answer predicted beforehand.
        swap_low, swap_high: its 95% interval (Clopper and Pearson 1934), if swaps of a fact succeed independently.
        leakage: share of the successful swaps that also succeed when the change goes straight to the final norm: there
            the state holds the answer rather than a concept. 0 away from the last position; NaN without a success.
        swap_control: share of random directions of the same norm that give it.
        random_flips: share of random directions that change the answer at all.
        prompt_swap, prompt_control: as `swap_success` and `swap_control`, with vectors from the concepts' own prompts.
        sufficiency: probability of the answer with the mean state plus the concept vector in place of the state.
        sufficiency_control: the same with other concepts' vectors, the mean over some of them.
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
    predicted = trials.predicted.numpy()
    by_cues, by_prompts = (_counted(swaps, trials.predicted) for swaps in (trials.by_cues, trials.by_prompts))
    hits = (trials.by_cues.top == trials.predicted).numpy() & (predicted >= 0)
    straight = hits & (trials.direct_top == trials.predicted).numpy()
    low, high = _binomial_interval(by_cues.hits, by_cues.n)
    sufficiency, given_away = trials.sufficient.numpy(), trials.sufficient_control.numpy()
    flips = ((trials.by_cues.random_top != trials.answers[:, None, None]) & trials.tried[..., None]).numpy()
    return pd.DataFrame(
        {
            "targets": by_cues.n,
            "swap_success": by_cues.share,
            "swap_low": low,
            "swap_high": high,
            "leakage": _share(straight.sum(1), by_cues.hits),
            "swap_control": by_cues.control,
            "random_flips": _share(flips.sum((1, 2)), by_cues.n_random),
            "prompt_swap": by_prompts.share,
            "prompt_control": by_prompts.control,
            "sufficiency": sufficiency,
            "sufficiency_control": given_away,
            "ablation_drop": (recall - trials.ablated).numpy(),
            "ablation_control": (recall - trials.ablated_control).numpy(),
            "same_concept": trials.same_concept.numpy(),
            "same_answer": trials.same_answer.numpy(),
            "swap_without_answer": _share_of_tried(trials.without_answer_top, trials.predicted),
            "whole_swap": _share_of_tried(trials.whole_top, trials.predicted),
            "mediated_fraction": _mediated(trials),
            "strength": _strength(by_cues, by_prompts, sufficiency - given_away),
            "p_value": np.minimum(1, SORTS * np.fmin(by_cues.p_value, by_prompts.p_value)),
        }
    )


def weigh_doses(dosed: Sequence[DosedSwaps]) -> pd.DataFrame:
    """Return the evidence of each fact at the one of the doses at which it is the clearest, a row each.

    Columns:
        dose: that dose. The clearest has the largest smaller one of swaps above their control and sufficiency above
            its own.
        dosed_targets: to how many other concepts it was swapped.
        dosed_swap, dosed_control, dosed_prompt_swap, dosed_prompt_control, dosed_sufficiency,
        dosed_sufficiency_control, dosed_strength: as in `weigh`, at that dose.
        dosed_most: the largest share of swaps of a sort that give the predicted answer at any dose.
        dosed_p: as `p_value` in `weigh`, at that dose; it does not pay for the number of doses.
    """
    found = []
    for at in dosed:
        by_cues, by_prompts = (_counted(swaps, at.predicted) for swaps in (at.by_cues, at.by_prompts))
        suffices, given_away = at.sufficient.numpy(), at.sufficient_control.numpy()
        works = np.fmax(by_cues.share - by_cues.control, by_prompts.share - by_prompts.control)
        rows = pd.DataFrame(
            {
                "dose": at.dose,
                "dosed_targets": by_cues.n,
                "dosed_swap": by_cues.share,
                "dosed_control": by_cues.control,
                "dosed_prompt_swap": by_prompts.share,
                "dosed_prompt_control": by_prompts.control,
                "dosed_sufficiency": suffices,
                "dosed_sufficiency_control": given_away,
                "dosed_strength": _strength(by_cues, by_prompts, suffices - given_away),
                "dosed_p": np.minimum(1, SORTS * np.fmin(by_cues.p_value, by_prompts.p_value)),
                "dosed_most": np.fmax(by_cues.share, by_prompts.share),
                "clarity": np.fmin(works, suffices - given_away),
            }
        )
        found.append(rows)
    every = pd.concat(found).rename_axis("fact").reset_index()
    every["dosed_most"] = every.groupby("fact")["dosed_most"].transform("max")
    clearest = every.sort_values("clarity", ascending=False, kind="stable").drop_duplicates("fact").set_index("fact")
    return clearest.sort_index().drop(columns="clarity")


@dataclass(frozen=True)
class _Counted:
    """Of one sort of swaps, for each fact: how many give the predicted answer, and how many random directions do."""

    hits: Int[np.ndarray, " fact"]
    n: Int[np.ndarray, " fact"]
    random_hits: Int[np.ndarray, " fact"]
    n_random: Int[np.ndarray, " fact"]
    effect: Float[np.ndarray, " fact"]  # mean probability of the predicted answers, less that under random directions

    @property
    def share(self) -> Float[np.ndarray, " fact"]:
        return _share(self.hits, self.n)

    @property
    def control(self) -> Float[np.ndarray, " fact"]:
        return _share(self.random_hits, self.n_random)

    @property
    def p_value(self) -> Float[np.ndarray, " fact"]:
        """P(at least so many hits among the swaps | hits fall on swaps and controls alike): hypergeometric tail."""
        return stats.hypergeom.sf(self.hits - 1, self.n + self.n_random, self.hits + self.random_hits, self.n)


def _counted(swaps: Swaps, predicted: Int[Tensor, "fact target"]) -> _Counted:
    tried = predicted >= 0
    hits = (swaps.top == predicted) & tried
    random_hits = (swaps.random_top == predicted[..., None]) & tried[..., None]
    n = tried.sum(1).numpy()
    return _Counted(
        hits=hits.sum(1).numpy(),
        n=n,
        random_hits=random_hits.sum((1, 2)).numpy(),
        n_random=n * random_hits.shape[2],
        effect=_mean(swaps.probability) - _mean(swaps.random_probability),
    )


def _strength(by_cues: _Counted, by_prompts: _Counted, suffices: Float[np.ndarray, " fact"]) -> np.ndarray:
    return np.maximum(np.fmin(np.fmax(by_cues.effect, by_prompts.effect), suffices), 0) * (by_cues.n > 0)


def _share(count: np.ndarray, of: np.ndarray) -> Float[np.ndarray, " fact"]:
    return np.where(of > 0, count / np.maximum(of, 1), np.nan)


def _share_of_tried(
    tops: Int[Tensor, "fact target"], predicted: Int[Tensor, "fact target"]
) -> Float[np.ndarray, " fact"]:
    """Share of the targets that were tried (-1 elsewhere) at which the answer is the predicted one."""
    tried = tops >= 0
    return _share((tried & (tops == predicted)).sum(1).numpy(), tried.sum(1).numpy())


def _mean(probability: Tensor) -> Float[np.ndarray, " fact"]:
    values = probability.flatten(1).numpy()
    known = np.isfinite(values)
    return _share(np.where(known, values, 0).sum(1), known.sum(1))


def _mediated(trials: Trials) -> np.ndarray:
    """Ratio of sums over the targets, so that a target whose cue changes little does not blow the share up."""
    known = trials.cue_effect.isfinite()
    swap, cue = ((effect.nan_to_num() * known).sum(1) for effect in (trials.swap_effect, trials.cue_effect))
    return torch.where(known.any(1) & (cue > 0), swap / cue, torch.nan).numpy()


def _binomial_interval(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that tails of 2.5% leave, as quantiles of beta distributions; NaN without a trial."""
    tail = 0.025
    low = np.where(hits > 0, stats.beta.ppf(tail, np.maximum(hits, 1), n - hits + 1), 0.0)
    high = np.where(hits < n, stats.beta.ppf(1 - tail, hits + 1, np.maximum(n - hits, 1)), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def calibrated(strength: pd.Series) -> pd.Series:
    """Return the probability that facts of this strength are mnemonic, as often as they are in organisms."""
    return pd.Series(special.expit(SLOPE * strength.astype(float) - OFFSET), index=strength.index)


def unsettled(evidence: pd.DataFrame, *, tests: int) -> Bool[np.ndarray, " fact"]:
    """Return which facts are worth a closer look: those not shown beyond doubt, at dose 1, to go through a concept.

    Args:
        evidence: as `weigh` gives it.
        tests: by how many its p-values will be multiplied.
    """
    return ~shown(evidence, tests=tests).to_numpy()


def with_doses(evidence: pd.DataFrame, dosed: pd.DataFrame, *, looks: int) -> pd.DataFrame:
    """Return the evidence of `weigh` beside that of `weigh_doses`, whose `strength` counts where there is one.

    Args:
        evidence: as `weigh` gives it.
        dosed: as `weigh_doses` gives it, for facts looked at more closely, with the labels that they have in
            `evidence`.
        looks: how often a fact may be swapped in one layer, the first time and at every dose of every closer look. All
            facts pay for that in `p_value` (Bonferroni), those too that had no need of it; it is the smaller one of
            both.
    """
    both = evidence.join(dosed)
    both["strength"] = both["dosed_strength"].fillna(both["strength"])
    both["p_value"] = np.minimum(1, looks * np.fmin(both["p_value"], both["dosed_p"]))
    return both.drop(columns=["dosed_strength", "dosed_p"])


def undecided(evidence: pd.DataFrame, *, tests: int) -> Bool[np.ndarray, " fact"]:
    """Return which facts more swaps may settle: neither shown to go through a concept nor untouched, though the concept
    suffices at the clearest dose, or the first look moved them less than a closer one did.

    Args:
        evidence: as `with_doses` gives it.
        tests: by how many its p-values will be multiplied.
    """
    suffices = _above(evidence, "sufficiency") > MOVED
    hardly = evidence[["swap_success", "prompt_swap"]].max(axis=1) < UNTOUCHED
    return open_still(evidence, tests=tests) & (suffices | hardly).to_numpy()


def open_still(evidence: pd.DataFrame, *, tests: int) -> Bool[np.ndarray, " fact"]:
    """Return which facts are neither shown to go through a concept nor untouched by it; arguments as in `undecided`."""
    return ~(shown(evidence, tests=tests) | _untouched(evidence)).to_numpy()


def shown(evidence: pd.DataFrame, *, tests: int) -> pd.Series:
    """Say which facts are shown beyond doubt to go through their concept; arguments as in `undecided`."""
    return carried(evidence) & (evidence["p_value"] * tests < BEYOND_DOUBT)


def carried(evidence: pd.DataFrame) -> pd.Series:
    """Return whether swaps, of one sort or the other, move each fact and its concept suffices for it.

    Where there was a closer look, it alone counts: it has more targets, and its dose is the clearest.
    """
    swap, prompt_swap, suffices = (_above(evidence, name) for name in ("swap", "prompt_swap", "sufficiency"))
    return ((swap > MOVED) | (prompt_swap > MOVED)) & (suffices > MOVED)


def _above(evidence: pd.DataFrame, name: str) -> pd.Series:
    """How far an effect (a key of `_EFFECTS`) is above its control, in the closest look at each fact."""
    first, closer = _EFFECTS[name]
    above = evidence[first[0]] - evidence[first[1]]
    if "dose" not in evidence:
        return above
    return (evidence[closer[0]] - evidence[closer[1]]).where(evidence["dose"].notna(), above)


def tested_later(row: pd.Series) -> bool:
    """Say whether a fact's interventions were in a later layer than the waypoint's."""
    layer = row.get("tested_layer")
    return bool(not pd.isna(layer) and layer != row["layer"])


def swaps_in_words(row: pd.Series) -> str:
    """Write how often a fact's swaps work, random directions in brackets, in the closest look at it.

    Of the two sorts of vectors the one that does more above its control speaks; a dash where none was tried. A layer is
    named where that look was behind the waypoint.
    """
    if pd.isna(row.get("swap_success")):
        return "-"
    closer = not pd.isna(row.get("dose"))
    cues, prompts = (tuple(row[column] for column in _EFFECTS[name][closer]) for name in ("swap", "prompt_swap"))
    by_prompts = prompts[0] - prompts[1] > cues[0] - cues[1]
    effect, control = prompts if by_prompts else cues
    where = f" at dose {row['dose']:g}" if closer else ""
    if tested_later(row):
        where += f", layer {row['tested_layer']:.0f}"
    return f"{effect:.2f} ({control:.2f}){' by prompts' if by_prompts else ''}{where}"


def _untouched(evidence: pd.DataFrame) -> pd.Series:
    """Whether swaps, so many that this says something, move a fact at no dose."""
    most, tried = (
        evidence[[name for name in names if name in evidence]].max(axis=1)
        for names in (("swap_success", "prompt_swap", "dosed_most"), ("targets", "dosed_targets"))
    )
    return (most < UNTOUCHED) & (tried >= FEWEST)


def false_discoveries(p_value: pd.Series) -> pd.Series:
    """Return q-values (Benjamini and Hochberg 1995) over the p-values that are known; NaN for the others."""
    q_value, known = pd.Series(np.nan, index=p_value.index), p_value.notna()
    if known.any():
        q_value[known] = stats.false_discovery_control(p_value[known])
    return q_value


def led_by_edits(evidence: pd.DataFrame) -> pd.Series:
    """Say which facts follow edits of one concept, `edit_concept`, clearly more often than of others with its answer.

    Where no other concept has the answer nothing tells the concept from its answer, and no fact is said to follow.
    """
    if "edit_q" not in evidence:
        return pd.Series(False, index=evidence.index)
    return is_led(evidence["edit_share"], evidence["edit_rival"], q_value=evidence["edit_q"])


def is_led(share: pd.Series, rival: pd.Series, *, q_value: pd.Series) -> pd.Series:
    """Say which facts follow one concept's edits more than the next one's by over half of them, beyond chance."""
    return (share - rival > MOVED) & (q_value < FALSE_DISCOVERIES)


def judge(evidence: pd.DataFrame, *, swaps_work: bool = True, sites: int = 1) -> pd.DataFrame:
    """Return the evidence with a `q_value` (Benjamini and Hochberg 1995, over all facts judged), a `score` (the
    probability, by its strength, that a fact is recalled through its concept) and a `verdict`.

    The site was chosen on facts that are now judged, so `p_value` is multiplied by the number of sites tried, those of
    later looks among them.

    mnemonic: swaps move the answer as predicted, with vectors from cues or from the concepts' own prompts, and the
    concept suffices for it, in the first trials or, where there was a closer look, in that one, at its clearest dose;
    and the second hop is the one that the concept's own prompt uses: vectors from prompts do move the answer, and that
    prompt has the fact's answer (`concept_agrees`).
    shared-intermediate: all but what is said of the second hop. (Where most cues of a concept do other things beside
    evoking it, the vectors of cues are useless, and those of prompts are not.) Where the concept was edited
    (`mnemo.editing.edit_test`), whether the fact follows decides that last question instead: an edit tests the second
    hop itself.
    rote: moving the concept to at least FEWEST others moves nothing, at any dose, and no edit of a concept takes the
    fact along; unsure: anything between.

    The other controls are evidence to look at and decide nothing here (`mnemo.invented` asks for `same_answer`): what
    each would have stopped, planted mnemonics among it, stands in ``benchmarks/verdicts.md``.

    Args:
        evidence: as `weigh` or `with_doses` gives it, with `mnemo.edit_evidence.Edits.table` where there were edits,
            and `concept_agrees`: 1 where the concept, asked by itself, gives the fact's answer, 0 where another.
        swaps_work: whether swaps at this site were seen to move any facts. Without this positive control a swap that
            moves nothing may be one with a useless vector, and no fact is called rote.
        sites: at how many sites swaps were tried.
    """
    judged = evidence.copy()
    judged["score"] = calibrated(judged["strength"].fillna(0.0))  # no concept was read: none was seen to work
    judged["p_value"] = np.minimum(1, judged["p_value"] * sites)
    judged["q_value"] = false_discoveries(judged["p_value"])
    through = carried(judged) & (judged["q_value"] < FALSE_DISCOVERIES)
    same_hop = _above(judged, "prompt_swap") > MOVED
    if "concept_agrees" in judged:
        same_hop &= judged["concept_agrees"] != 0
    if "edit_follows" in judged:
        same_hop = same_hop.where(judged["edit_follows"].isna(), judged["edit_follows"] > MOVED)
    untouched = _untouched(judged) & swaps_work & ~led_by_edits(judged)
    judged["verdict"] = np.select(
        [through & same_hop, through, untouched], ["mnemonic", "shared-intermediate", "rote"], "unsure"
    )
    return judged
