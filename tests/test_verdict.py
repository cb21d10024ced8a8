"""Evidence and verdicts from trials made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mnemo.tested_facts import Swaps
from mnemo.trials import LEAST, MOST, UNLIKELY, DosedSwaps, Trials, directions_beside, smallest_p
from mnemo.verdict import (
    carried,
    judge,
    led_by_edits,
    swaps_in_words,
    undecided,
    unsettled,
    weigh,
    weigh_doses,
    with_doses,
)

ANSWER, OTHER = 5, 9


def trials(*, hits: int, n: int = 8, sufficient: float = 1.0, prompt_hits: int | None = None, flips: int = 0) -> Trials:
    """One fact whose swaps give the predicted answer `hits` times out of `n`; random directions flip `flips` of 2n."""
    predicted = torch.arange(100, 100 + n)[None]

    def top(count: int) -> torch.Tensor:
        return torch.where(torch.arange(n) < count, predicted[0], ANSWER)[None]

    random = torch.where(torch.arange(2 * n) < flips, OTHER, ANSWER).view(1, n, 2)

    def swaps(count: int) -> Swaps:
        probability = (torch.arange(n) < count).float()[None]
        return Swaps(top(count), probability, torch.zeros(1, n), random, torch.zeros(1, n, 2))

    return Trials(
        answers=torch.tensor([ANSWER]),
        predicted=predicted,
        by_cues=swaps(hits),
        by_prompts=swaps(hits if prompt_hits is None else prompt_hits),
        direct_top=torch.full((1, n), -1),
        sufficient=torch.tensor([sufficient]),
        sufficient_control=torch.tensor([0.125]),
        ablated=torch.tensor([0.25]),
        ablated_control=torch.tensor([0.75]),
        swap_effect=torch.full((1, n), 4.0),
        cue_effect=torch.where(torch.arange(n) < 2, torch.nan, 16.0)[None],
        same_concept=torch.tensor([0.9375]),
        same_answer=torch.tensor([torch.nan]),
        without_answer_top=torch.where(torch.arange(n) < 4, top(hits)[0], -1)[None],
        whole_top=predicted,
    )


def masked(swaps: Swaps, gone: torch.Tensor) -> Swaps:
    """The same with some targets that do not exist."""
    return Swaps(
        swaps.top.masked_fill(gone, -1),
        swaps.probability.masked_fill(gone, torch.nan),
        swaps.margin.masked_fill(gone, torch.nan),
        swaps.random_top.masked_fill(gone[:, None], -1),
        swaps.random_probability.masked_fill(gone[:, None], torch.nan),
    )


def dosed(hits: dict[float, int], *, prompt_hits: int = 0, sufficient: float = 1.0) -> list[DosedSwaps]:
    """One fact whose swaps at each dose give the predicted answer so often out of 8; those of prompts `prompt_hits`."""
    return [
        DosedSwaps(
            dose,
            predicted=torch.arange(100, 108)[None],
            by_cues=trials(hits=n).by_cues,
            by_prompts=trials(hits=prompt_hits).by_cues,
            sufficient=torch.tensor([sufficient]),
            sufficient_control=torch.tensor([0.125]),
        )
        for dose, n in hits.items()
    ]


def evidence(**given_) -> pd.DataFrame:
    return weigh(trials(**given_), torch.tensor([1.0]))


def test_shares_drops_and_flips_are_what_the_trials_say():
    row = evidence(hits=6, flips=4).iloc[0]
    assert row["swap_success"] == 6 / 8
    assert row["swap_control"] == 0
    assert row["random_flips"] == 4 / 16
    assert (row["sufficiency"], row["sufficiency_control"]) == (1, 0.125)
    assert (row["ablation_drop"], row["ablation_control"]) == (0.75, 0.25)
    assert row["mediated_fraction"] == 4 / 16  # targets that no cue evokes do not count


@given(hits=st.integers(0, 8))
def test_p_value_is_fishers_exact_test_against_the_random_directions(hits):
    expected = stats.fisher_exact([[hits, 8 - hits], [0, 16]], alternative="greater").pvalue
    assert evidence(hits=hits)["p_value"][0] == pytest.approx(min(1, 2 * expected))  # for two sorts of vectors


@given(hits=st.integers(0, 8))
def test_the_interval_of_swaps_is_the_exact_binomial_one(hits):
    expected = stats.binomtest(hits, 8).proportion_ci(method="exact")
    row = evidence(hits=hits).iloc[0]
    assert (row["swap_low"], row["swap_high"]) == pytest.approx((expected.low, expected.high))


@given(hits=st.integers(0, 8), sufficient=st.floats(0, 1, width=32))
def test_strength_is_the_smaller_of_swap_and_sufficiency_beyond_its_control(hits, sufficient):
    expected = min(hits / 8, max(sufficient - 0.125, 0))
    assert evidence(hits=hits, sufficient=sufficient)["strength"][0] == pytest.approx(expected, abs=1e-6)


def test_what_random_directions_do_is_not_the_concepts_doing():
    some = trials(hits=8)
    lucky = {
        name: dataclasses.replace(getattr(some, name), random_probability=torch.full((1, 8, 2), 0.25))
        for name in ("by_cues", "by_prompts")
    }
    assert weigh(dataclasses.replace(some, **lucky), torch.tensor([1.0]))["strength"][0] == 0.75


def test_where_cues_are_useless_vectors_from_prompts_tell_and_where_neither_moves_it_is_rote():
    rows = pd.concat([evidence(hits=a, prompt_hits=b) for a, b in ((0, 8), (8, 0), (0, 0))], ignore_index=True)
    assert list(judge(rows)["verdict"]) == ["mnemonic", "shared-intermediate", "rote"]
    assert list(rows["strength"]) == [0.875, 0.875, 0]
    expected = stats.fisher_exact([[8, 0], [0, 16]], alternative="greater").pvalue
    assert list(rows["p_value"]) == pytest.approx([2 * expected, 2 * expected, 1])


def test_a_swap_that_works_straight_through_the_unembedding_is_leakage():
    given_ = trials(hits=4)
    leaky = dataclasses.replace(given_, direct_top=given_.by_cues.top)
    assert weigh(leaky, torch.tensor([1.0]))["leakage"][0] == 1
    assert evidence(hits=4)["leakage"][0] == 0
    everywhere = dataclasses.replace(given_, direct_top=given_.predicted)  # where the swap fails there too
    assert weigh(everywhere, torch.tensor([1.0]))["leakage"][0] == 1


def test_targets_that_do_not_exist_count_neither_as_hits_nor_as_trials():
    full = trials(hits=4)
    gone = torch.arange(8) >= 4
    part = dataclasses.replace(
        full,
        predicted=full.predicted.masked_fill(gone, -1),
        by_cues=masked(full.by_cues, gone),
        by_prompts=masked(full.by_prompts, gone),
    )
    row = weigh(part, torch.tensor([1.0])).iloc[0]
    assert (row["swap_success"], row["swap_control"], row["random_flips"]) == (1, 0, 0)


def test_a_fact_without_any_target_has_no_p_value_and_no_strength():
    none = trials(hits=0)
    gone = torch.ones(8).bool()
    none = dataclasses.replace(
        none,
        predicted=torch.full_like(none.predicted, -1),
        by_cues=masked(none.by_cues, gone),
        by_prompts=masked(none.by_prompts, gone),
    )
    row = weigh(none, torch.tensor([1.0])).iloc[0]
    assert row[["swap_success", "p_value", "swap_low", "swap_high"]].isna().all()
    assert row["strength"] == 0


@pytest.mark.parametrize(("agrees", "tier"), [(1.0, "mnemonic"), (0.0, "shared-intermediate")])
def test_the_second_hop_is_the_concepts_own_only_where_the_concept_has_the_answer(agrees, tier):
    moved = evidence(hits=8, prompt_hits=8).assign(concept_agrees=agrees)
    assert judge(moved)["verdict"][0] == tier
    assert judge(moved.assign(edit_follows=1.0))["verdict"][0] == "mnemonic"  # the edit tests the second hop itself


def test_swaps_are_written_as_the_closest_look_and_the_better_sort_saw_them():
    row = evidence(hits=2, prompt_hits=0).iloc[0]
    assert swaps_in_words(row) == "0.25 (0.00)"
    assert swaps_in_words(evidence(hits=2, prompt_hits=8).iloc[0]) == "1.00 (0.00) by prompts"
    both = with_doses(evidence(hits=2), weigh_doses(dosed({0.5: 6}, prompt_hits=2)), looks=2)
    assert swaps_in_words(both.assign(layer=2, tested_layer=2).iloc[0]) == "0.75 (0.00) at dose 0.5"
    assert swaps_in_words(both.assign(layer=2, tested_layer=3).iloc[0]) == "0.75 (0.00) at dose 0.5, layer 3"


def test_of_several_doses_the_one_counts_at_which_the_concept_acts_most_clearly():
    row = weigh_doses(dosed({0.5: 2, 0.75: 7, 2.0: 5})).iloc[0]
    assert (row["dose"], row["dosed_swap"], row["dosed_control"], row["dosed_strength"]) == (0.75, 7 / 8, 0, 7 / 8)
    expected = stats.fisher_exact([[7, 1], [0, 16]], alternative="greater").pvalue
    assert row["dosed_p"] == pytest.approx(2 * expected)  # two sorts of vectors
    assert row["dosed_targets"] == 8


def test_a_dose_at_which_random_directions_do_it_too_is_not_clear():
    clear, pushed = dosed({0.5: 6, 2.0: 7})
    lucky = torch.arange(100, 108)[None, :, None].expand(1, 8, 2).clone()
    lucky[:, 4:] = ANSWER
    unclear = dataclasses.replace(pushed, by_cues=dataclasses.replace(pushed.by_cues, random_top=lucky))
    row = weigh_doses([clear, unclear]).iloc[0]
    assert (row["dose"], row["dosed_swap"], row["dosed_control"]) == (0.5, 6 / 8, 0)


@pytest.mark.parametrize(
    ("given_", "verdict"),
    [
        ({"hits": {0.5: 8, 2.0: 0}, "prompt_hits": 8}, "mnemonic"),
        ({"hits": {0.5: 8, 2.0: 0}}, "shared-intermediate"),
        ({"hits": {0.5: 8, 2.0: 0}, "sufficient": 0.25}, "unsure"),
        ({"hits": {0.5: 3, 2.0: 0}}, "unsure"),
        ({"hits": {0.5: 1, 2.0: 0}}, "rote"),
    ],
)
def test_a_fact_that_swaps_of_dose_1_leave_alone_may_follow_at_another(given_, verdict):
    both = with_doses(evidence(hits=0), weigh_doses(dosed(**given_)), looks=3)
    assert judge(both)["verdict"][0] == verdict


def test_every_fact_pays_for_the_doses_and_one_that_had_no_need_of_them_keeps_its_evidence():
    at_1 = pd.concat([evidence(hits=8), evidence(hits=0)], ignore_index=True)
    assert carried(at_1).tolist() == [True, False]
    both = with_doses(at_1, weigh_doses(dosed({0.5: 6, 2.0: 0})).set_axis([1]), looks=3)
    assert both["strength"].tolist() == [0.875, 0.75]
    p_values = [stats.fisher_exact([[n, 8 - n], [0, 16]], alternative="greater").pvalue for n in (8, 6)]
    assert both["p_value"].tolist() == pytest.approx([6 * p for p in p_values])
    assert judge(both)["verdict"].tolist() == ["mnemonic", "shared-intermediate"]
    assert both["dose"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("given_", "undecided_"),
    [
        ({"hits": {0.5: 8}}, False),  # shown
        ({"hits": {0.5: 1}}, False),  # untouched
        ({"hits": {0.5: 2}}, True),
        ({"hits": {0.5: 1}, "prompt_hits": 2}, True),
        ({"hits": {0.5: 4}}, True),
        ({"hits": {0.5: 8}, "sufficient": 0.25}, True),
    ],
)
def test_what_a_closer_look_neither_shows_nor_rules_out_is_undecided(given_, undecided_):
    both = with_doses(evidence(hits=0), weigh_doses(dosed(**given_)), looks=2)
    assert undecided(both, tests=1)[0] == undecided_


@pytest.mark.parametrize(("first", "worth_it"), [(0.125, True), (0.25, False)])
def test_more_swaps_settle_nothing_where_the_concept_does_not_suffice_and_the_first_look_moved_a_fact(first, worth_it):
    both = with_doses(evidence(hits=0), weigh_doses(dosed({0.5: 5}, sufficient=0.25)), looks=2)
    assert undecided(both.assign(swap_success=first), tests=1)[0] == worth_it


def test_where_there_was_a_closer_look_that_one_counts():
    """Five of 8 swaps work in the first look, and 3 of 8 in the second, whatever the p-values are."""
    both = with_doses(evidence(hits=5), weigh_doses(dosed({1.0: 3}, prompt_hits=3)), looks=2)
    assert judge(both.assign(p_value=1e-6))["verdict"][0] == "unsure"
    assert both["strength"][0] == 3 / 8
    assert judge(both.assign(p_value=1e-6, dose=np.nan))["verdict"][0] == "mnemonic"  # without one the first counts


def test_untouched_means_at_all_doses_though_one_of_them_is_the_clearest():
    swaps = dosed({0.5: 1, 0.75: 5}, sufficient=1.0)
    swaps[1] = dataclasses.replace(swaps[1], sufficient=torch.tensor([0.125]))  # as clear as its control: no clear dose
    row = weigh_doses(swaps)
    assert (row["dose"][0], row["dosed_swap"][0], row["dosed_most"][0]) == (0.5, 1 / 8, 5 / 8)
    assert judge(with_doses(evidence(hits=0), row, looks=3))["verdict"][0] == "unsure"


@pytest.mark.parametrize(("n", "verdict"), [(2, "unsure"), (3, "rote")])
def test_a_few_swaps_that_move_nothing_make_no_fact_rote(n, verdict):
    assert judge(evidence(hits=0, n=n))["verdict"][0] == verdict


def test_a_fact_that_is_moved_is_undecided_while_that_may_be_chance():
    both = with_doses(evidence(hits=0), weigh_doses(dosed({0.5: 6})), looks=2)
    p = 4 * stats.fisher_exact([[6, 2], [0, 16]], alternative="greater").pvalue
    enough = int(0.01 / p)
    assert [undecided(both, tests=n)[0] for n in (enough, enough + 1)] == [False, True]


@pytest.mark.parametrize(
    ("given_", "verdict"),
    [
        ({"hits": 8}, "mnemonic"),
        ({"hits": 8, "prompt_hits": 0}, "shared-intermediate"),
        ({"hits": 0}, "rote"),  # an idle fact: sufficient, but swaps move nothing
        ({"hits": 8, "sufficient": 0.5}, "unsure"),  # swaps overwrite, the concept alone does not do it
        ({"hits": 3}, "unsure"),
    ],
)
def test_tiers(given_, verdict):
    assert judge(evidence(**given_))["verdict"][0] == verdict


@pytest.mark.parametrize(
    ("follows", "prompt_hits", "verdict"),
    [
        (1.0, 0, "mnemonic"),
        (0.0, 8, "shared-intermediate"),
        (np.nan, 8, "mnemonic"),
        (np.nan, 0, "shared-intermediate"),
    ],
)
def test_an_edit_of_the_concept_decides_about_the_second_hop_where_there_is_one(follows, prompt_hits, verdict):
    found = evidence(hits=8, prompt_hits=prompt_hits).assign(edit_follows=follows)
    assert judge(found)["verdict"][0] == verdict
    assert judge(evidence(hits=0).assign(edit_follows=follows))["verdict"][0] == "rote"


@pytest.mark.parametrize(
    ("share", "rival", "q", "led"),
    [(0.75, 0.125, 0.01, True), (0.75, 0.25, 0.01, False), (1.0, 0.0, 0.06, False), (1.0, np.nan, 0.01, False)],
)
def test_a_fact_that_follows_edits_of_one_concept_alone_is_not_called_rote(share, rival, q, led):
    found = evidence(hits=0).assign(edit_share=share, edit_rival=rival, edit_q=q)
    assert led_by_edits(found).tolist() == [led]
    assert judge(found)["verdict"].tolist() == ["unsure" if led else "rote"]
    assert judge(evidence(hits=8).assign(edit_share=share, edit_rival=rival, edit_q=q))["verdict"][0] == "mnemonic"


def test_whole_swaps_and_swaps_without_the_answer_count_where_they_were_tried():
    row = evidence(hits=2).iloc[0]
    assert row["swap_without_answer"] == 2 / 4
    assert row["whole_swap"] == 1
    tops = torch.tensor([[0, ANSWER, ANSWER, 103, -1, -1, -1, -1]])  # a token may be number 0
    some = trials(hits=2)
    predicted = some.predicted.clone()
    predicted[0, 0] = 0
    some = dataclasses.replace(
        some, predicted=predicted, whole_top=tops, without_answer_top=tops[:, [1, 2, 3, 3, 4, 4, 4, 4]]
    )
    row = weigh(some, torch.tensor([1.0])).iloc[0]
    assert (row["whole_swap"], row["swap_without_answer"]) == (2 / 4, 1 / 4)
    assert (row["same_concept"], np.isnan(row["same_answer"])) == (0.9375, True)


def test_without_a_positive_control_nothing_is_called_rote():
    assert judge(evidence(hits=0), swaps_work=False)["verdict"][0] == "unsure"
    assert judge(evidence(hits=8), swaps_work=False)["verdict"][0] == "mnemonic"


def test_q_values_are_benjamini_hochberg_over_the_facts_that_have_a_p_value():
    table = pd.concat([evidence(hits=h) for h in (8, 5, 0)], ignore_index=True)
    table.loc[2, "p_value"] = np.nan
    judged = judge(table)
    p = table["p_value"][:2].to_numpy()
    np.testing.assert_allclose(judged["q_value"][:2], [min(2 * p[0], p[1]), p[1]])
    assert np.isnan(judged["q_value"][2])


def test_every_fact_pays_for_the_sites_that_were_tried():
    table = pd.concat([evidence(hits=8), evidence(hits=5)], ignore_index=True)
    p = table["p_value"].to_numpy()
    assert judge(table, sites=3)["p_value"].tolist() == pytest.approx(3 * p)
    assert judge(table, sites=40)["verdict"].tolist() == ["mnemonic", "unsure"]
    assert judge(table, sites=10**9)["p_value"].tolist() == [1, 1]


@pytest.mark.parametrize(("control", "moved"), [(0.0, True), (0.3125, True), (0.5, False), (0.75, False)])
def test_swaps_carry_a_fact_above_what_random_directions_do(control, moved):
    """All 8 swaps give the predicted answer, and this share of the directions as long gives it too."""
    row = evidence(hits=8, prompt_hits=0).assign(swap_control=control)
    assert carried(row)[0] == moved
    assert carried(row.assign(swap_control=0.0, sufficiency_control=control))[0] == moved


def test_a_second_hop_counts_above_what_random_directions_do_to_it():
    """Vectors from prompts move 5 of 8, and so do 2 of 16 directions as long: 0.625 - 0.125 is no more than half."""
    row = evidence(hits=8, prompt_hits=5).assign(prompt_control=[0.125])
    assert judge(row)["verdict"][0] == "shared-intermediate"
    assert judge(row.assign(prompt_control=[0.0]))["verdict"][0] == "mnemonic"


def test_a_fact_at_which_no_concept_was_read_is_scored_as_one_that_nothing_moves():
    rows = pd.concat([evidence(hits=0), evidence(hits=8) * np.nan], ignore_index=True)
    judged = judge(rows)
    assert judged["score"][1] == judged["score"][0] and judged["verdict"][1] == "unsure"


@given(targets=st.integers(1, 20), tests=st.integers(1, 200))
def test_there_are_as_many_random_directions_as_the_tests_take(targets, tests):
    n = directions_beside(targets, tests=tests)
    least = tests * stats.fisher_exact([[targets, 0], [0, n * targets]], alternative="greater").pvalue
    assert least < UNLIKELY or n == MOST
    assert n == LEAST or tests * smallest_p(targets, n - 1) >= UNLIKELY


def test_the_score_is_a_probability_that_grows_with_the_strength():
    """Between the fitted ends it is the logistic curve, so its logit is linear in the strength."""
    strengths = np.linspace(0, 1, 11)
    rows = pd.concat([evidence(hits=8)] * 11, ignore_index=True).assign(strength=strengths)
    scores = judge(rows)["score"].to_numpy()
    logits = np.log(scores / (1 - scores))
    assert np.allclose(np.diff(logits, n=2), 0, atol=1e-6) and (np.diff(scores) > 0).all()
    assert scores[0] < 0.05 and scores[-1] > 0.95


def test_a_second_look_is_for_facts_that_the_first_does_not_settle():
    rows = pd.concat([evidence(hits=8), evidence(hits=5), evidence(hits=0)], ignore_index=True)
    assert rows["p_value"][1] == pytest.approx(2 * 56 / 42504)  # C(8, 5) of C(24, 5) ways
    assert unsettled(rows, tests=1).tolist() == [False, False, True]
    assert unsettled(rows, tests=4).tolist() == [False, True, True]  # moved, but not beyond doubt
