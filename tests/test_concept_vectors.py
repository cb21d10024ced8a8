"""Concept vectors, controls and targets against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mnemo.concept_vectors import (
    FEW,
    ConceptTable,
    ConceptVectors,
    agrees,
    choose_targets,
    geometric_median,
    like,
)
from mnemo.patching import Site


def table(answers) -> ConceptTable:
    n = len(answers)
    return ConceptTable(
        tuple(f"concept {i}" for i in range(n)), (), torch.tensor(answers), torch.ones(n), torch.tensor(answers)
    )


def vectors() -> ConceptVectors:
    """Facts 0 and 1 evoke concept 0, fact 2 alone evokes concept 1, fact 3 none."""
    states = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 8.0], [0.0, 0.0]])
    contributes = torch.tensor([0, 0, 1, -1])
    from_prompts = torch.tensor([[70.0, 0.0], [0.0, 70.0]])
    return ConceptVectors.of(states, contributes, from_prompts=from_prompts, site=Site(1, -1))  # their mean is [2, 2]


def test_phrases_are_found_by_their_text_and_rivals_by_their_answer():
    concepts = table([5, 6, 5, 5])
    assert concepts.rows_of(["concept 2", None, "another", "concept 0"]).tolist() == [2, -1, -1, 0]
    assert concepts.rows_of([]).dtype == torch.long
    others = concepts.others_with(torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 1, 3]))
    assert others.int().tolist() == [[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_vector_leaves_the_tested_fact_out():
    seen = vectors().seen_by(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(seen, torch.tensor([[3.0, -2.0], [1.0, -2.0], [2.0, -2.0]]))


def test_one_odd_context_of_a_few_hardly_moves_the_vector():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(8, generator=generator)
    points = true + 0.1 * torch.randn(1, 6, 8, generator=generator)
    odd = points.clone()
    odd[0, 0] += 40
    assert (odd.mean(1) - true).norm() > 15
    assert (geometric_median(odd) - true).norm() < 0.3
    # It is where the unit vectors to the points cancel (the gradient of the sum of distances).
    there = geometric_median(points)[0]
    assert torch.nn.functional.normalize(points[0] - there, dim=-1).sum(0).norm() < 1e-2
    torch.testing.assert_close(geometric_median(points[:, :1]), points[:, 0])


def test_of_many_contexts_the_mean_is_taken_without_the_tested_fact():
    states = torch.randn(2 * FEW, 3, generator=torch.Generator().manual_seed(0))
    contributes = torch.arange(2 * FEW) % 2
    contributes[: FEW + 1] = 0  # more than FEW contexts of concept 0
    v = ConceptVectors.of(states, contributes, from_prompts=torch.zeros(2, 3), site=Site(1, -1))
    others = (contributes == 0) & (torch.arange(2 * FEW) != 3)
    expected = (states[others] - states.mean(0)).mean(0)
    torch.testing.assert_close(v.seen_by(torch.tensor([3]), torch.tensor([0]))[0], expected)


def test_a_concept_with_no_other_cue_takes_the_vector_of_its_own_prompt():
    seen = vectors().seen_by(torch.tensor([2, 0]), torch.tensor([1, 1]))
    torch.testing.assert_close(seen, torch.tensor([[0.0, 70.0], [-2.0, 6.0]]))


def test_a_swap_never_mixes_vectors_of_cues_with_vectors_of_prompts():
    # fact 0 leaves fact 1 for its own concept; fact 2 is the only context of concept 1
    step = vectors().between(torch.tensor([0, 2]), torch.tensor([0, 1]), other=torch.tensor([1, 0]))
    torch.testing.assert_close(step, torch.tensor([[-5.0, 8.0], [70.0, -70.0]]))


def test_controls_have_the_norm_of_what_they_control_for_and_no_direction():
    given = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 401)[:, None]
    control = like(given, torch.Generator().manual_seed(1))
    torch.testing.assert_close(control.norm(dim=-1), given.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(given, control)
    assert abs(cosine.mean()) < 0.02 and cosine.std() == pytest.approx(64**-0.5, rel=0.15)


def test_agreement_is_about_the_concepts_own_answer():
    found = agrees(torch.tensor([7, 7, 7]), torch.tensor([0, 1, -1]), table=table([7, 8]))
    assert found.tolist() == [True, False, False]


def test_targets_are_other_concepts_with_other_answers_and_answers_are_spread():
    concepts = table([1, 1, 2, 2, 3, 4])
    chosen = choose_targets(
        concepts,
        torch.tensor([3, 3, 3, 3, 3, 0]),
        answers=torch.tensor([1, 2]),
        concepts=torch.tensor([0, 2]),
        n_targets=3,
        seed=0,
    )
    first, second = ({int(concepts.answers[c]) for c in row if c >= 0} for row in chosen)
    assert first == {2, 3}  # never its own answer; concept 5 has no cue to speak for it
    assert second == {1, 3}
    assert concepts.answers[chosen[0, :2]].tolist() in ([2, 3], [3, 2])  # one of each answer before a second of one


def test_no_target_has_the_answer_of_a_decoys_own_concept():
    chosen = choose_targets(
        table([1, 1, 2, 3]), torch.ones(4).long(), answers=torch.tensor([3]), concepts=torch.tensor([0]), n_targets=2,
        seed=0,
    )  # fmt: skip
    assert chosen.tolist() == [[2, -1]]  # from concept 0 to 1 no answer would change, whatever the fact goes through


def test_too_few_targets_are_filled_with_none():
    chosen = choose_targets(
        table([1, 2]), torch.tensor([1, 1]), answers=torch.tensor([1]), concepts=torch.tensor([0]), n_targets=4, seed=0
    )
    assert chosen.tolist() == [[1, -1, -1, -1]]


def test_the_stand_in_is_one_of_several_other_contexts():
    states = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    contributes = torch.tensor([0, 0, 0, 1])
    v = ConceptVectors.of(states, contributes, from_prompts=torch.zeros(2, 1), site=Site(1, -1))
    found = v.other_context(torch.tensor([0, 1, 3, 3]), torch.tensor([0, 0, 1, 0]))
    assert found.tolist() == [1, 0, -1, 0]


def test_the_answers_direction_is_what_other_concepts_with_it_have_in_common():
    """Concepts 0, 1 and 2 share an answer; 3 has one of its own. Fact 4 evokes none."""
    own = torch.tensor([[2.0, 5.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 7.0]])
    states = torch.cat([own, -own.sum(0, keepdim=True)])  # with a mean of 0
    v = ConceptVectors.of(states, torch.tensor([0, 1, 2, 3, -1]), from_prompts=torch.zeros(4, 3), site=Site(1, -1))
    bare, known = v.without_answer(torch.full((3,), 4), torch.tensor([0, 1, 3]), answers=torch.tensor([8, 8, 8, 9]))
    assert known.tolist() == [True, True, False]
    torch.testing.assert_close(bare[0], torch.tensor([0.0, 5.0, 0.0]))
    direction = torch.tensor([6.0, 5.0, 0.0]) / 61**0.5  # of concepts 0 and 2
    torch.testing.assert_close(bare[1], own[1] - (own[1] @ direction) * direction)
    torch.testing.assert_close(bare[2], own[3])
