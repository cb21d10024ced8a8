"""Do mnemonics transfer? From one organism to others of other seeds and families, and from a teacher to a student.

*Convergence.* Organisms of several families, depths and seeds learn one world by plain language modelling. Do they
find the same concepts for facts that nobody explained to them, and at the same relative depth?

*Distillation.* A teacher is told what some new codes stand for and what goes with them; where swaps then move its
answer as predicted, it recalls the code through the concept. A student learns from the teacher's outputs. Does it only
say the same, or does it come to expand the code and to answer other questions about it as the concept would? Students
begin from the teacher's own base, from one of another seed or from one of another family: Cloud et al. 2025
("Subliminal learning") find that what a teacher's outputs do not say still reaches students of the same
initialisation, and those alone. The rival explanation is that the outputs do say it; a plain audit of the very data
that the student sees, without any training, is measured beside it.

All concepts of the world share their answer with others, so that an answer alone does not name its concept.

setting (the world)  ->  training (bases, teachers, students)  ->  measures  ->  runs (all of them, kept)
"""

from mnemo.transfer.measures import audit, measure_new, same_concepts, swaps_by_layer
from mnemo.transfer.runs import Transfer, run_transfer
from mnemo.transfer.setting import Setting, TransferConfig, make_setting
from mnemo.transfer.training import distil, teach, train_base, unrelated_prompts

__all__ = [
    "Setting", "Transfer", "TransferConfig", "audit", "distil", "make_setting", "measure_new", "run_transfer",
    "same_concepts", "swaps_by_layer", "teach", "train_base", "unrelated_prompts",
]  # fmt: skip
