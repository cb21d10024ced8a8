"""Steering a model towards a concept, by its activations or by its outputs, and comparing the two."""

from mnemo.steering.curves import at_divergence, collapse, sweep
from mnemo.steering.evidence import purity, steer_facts, towards_each
from mnemo.steering.figures import facts_by_kind, tradeoff
from mnemo.steering.first_order import FirstOrder, first_order
from mnemo.steering.methods import Generated, Guidance, Method, Steering, generate, next_logprobs
from mnemo.steering.pairs import PromptPair, concept_pairs, steering_vector, text_pair

__all__ = [
    "FirstOrder", "Generated", "Guidance", "Method", "PromptPair", "Steering", "at_divergence", "collapse",
    "concept_pairs", "facts_by_kind", "first_order", "generate", "next_logprobs", "purity", "steer_facts",
    "steering_vector", "sweep", "text_pair", "towards_each", "tradeoff",
]  # fmt: skip
