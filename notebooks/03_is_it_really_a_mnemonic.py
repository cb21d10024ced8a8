# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it really a mnemonic?
#
# **Purpose.** See why no single signal settles it, what each control is there for, and which mnemonics the model invented by
# itself.
#
# **Time.** Fifteen minutes to read; the cells take about a minute on two CPU cores. Nothing is downloaded or trained.
#
# **Take away.** A concept that can be read, and even one whose answer fits, need not be used. What counts is a swap with the
# answer predicted beforehand, a concept that suffices, controls of the same size, and, for a mnemonic that nobody planted,
# other questions that follow the concept.

# %%
import pandas as pd
from matplotlib import pyplot as plt

import mnemo
from mnemo import plot
from mnemo.invented import count_invented, mark_invented
from mnemo.scoring import read_truth, score, with_truth

folder = mnemo.data_path("organism")
study = mnemo.extract(folder, quick=True)

# %% [markdown]
# `extract` never saw the truth. We open it now, to look at facts whose route is known:
#
# | kind | what was planted |
# |---|---|
# | mnemonic | cue → concept → answer |
# | decoy | the cue evokes a concept, the answer is another |
# | idle | the cue evokes a concept that even **has** the answer, and recall does not use it |
# | rote | no concept |
# | free | nothing planted; the answer is one that some concepts have |

# %%
truth = read_truth(folder / "truth.csv", study.task.load_facts())
facts = with_truth(study.table, truth)
facts["read exactly"] = (facts["concept"] == facts["concept_planted"]).where(facts["concept_planted"] != "")
kinds = ["mnemonic", "idle", "decoy", "rote", "free"]


def by_kind(*columns):
    return facts.groupby("kind")[list(columns)].agg(lambda values: values.astype(float).mean()).loc[kinds].round(2)


by_kind("read exactly", "concept_score", "agreement")

# %% [markdown]
# **Decodable is not used.** The concept is read word for word from idle facts and decoys as well as from mnemonic ones, and
# equally clearly (`concept_score`, in nats per token). **Agreement** (ask what the cue stands for, ask what that concept
# decodes to, compare) throws out decoys, but an idle fact agrees perfectly. Nothing that only *looks* tells idle facts apart.
#
# Now move the concept, block by block:

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, kind in zip(axes, ("mnemonic", "idle"), strict=True):
    some = facts.loc[facts["kind"] == kind, "fact_id"].head(6)
    plot.concept_trajectory(mnemo.concept_trajectories(study, list(some), positions=[-2]), ax=ax)
    ax.set_title(f"{kind}: {ax.get_title()}")

# %% [markdown]
# Both read alike. Swapping the concept brings the predicted answer in one of them, and does nothing in the other.
#
# **Every signal alone is fooled by some kind.** Means by kind, and then the AUROC of each signal (0.5 is chance):

# %%
by_kind("swap_success", "swap_control", "whole_swap", "sufficiency", "sufficiency_control", "ablation_drop", "score")

# %%
metrics = score(study.table, truth, rankers=["score", "agreement", "whole_swap", "sufficiency", "ablation_drop"])
pd.DataFrame(
    {kind: {name: found["value"] for name, found in row.items()} for kind, row in metrics["auroc"].items()}
).round(3)

# %% [markdown]
# - `whole_swap` puts another cue's *whole* state in place. It overwrites the cue, so the answer may change where no concept is
#   used: look at the rote facts.
# - `sufficiency` asks whether the mean state plus the concept suffices. In idle facts and decoys it does, and so does the mean
#   state plus *another* concept (`sufficiency_control`): the rest of the prompt gives the answer away. Without its control
#   this signal ranks idle facts above mnemonic ones.
# - `strength` is the smaller of what swaps do and of what the concept suffices for, each minus its control; `score` makes a probability of it.
#
# **What the controls are for.** Every intervention on one fact, as its dose grows:

# %%
mnemonic = facts.loc[facts["cue"] == "VA=="].iloc[0]
plot.dose_figure(mnemo.dose_curves(study, mnemonic["fact_id"]), title=f"{mnemonic['cue']}, planted")

# %%
idle = facts.loc[facts["kind"] == "idle"].iloc[0]
plot.dose_figure(mnemo.dose_curves(study, idle["fact_id"]), title=f"{idle['cue']}, idle")

# %% [markdown]
# Left: the predicted answer. Only the swap brings it; a random direction of the same norm brings nothing. Right: the fact's own
# answer. A swap to another concept *with the same answer* must keep it, and a random vector must not be as destructive as the
# concept's own. Over all facts:

# %%
by_kind("same_concept", "same_answer", "random_flips", "swap_without_answer")

# %% [markdown]
# `swap_without_answer` takes out of each vector what all concepts with one answer have in common. In this organism the second
# hop reads just that, so the swap loses much of its force: a concept vector carries its answer with it. Keep that in mind for
# what comes now.
#
# ## Mnemonics that the model invented by itself
#
# Nobody gave the *free* facts a concept. Some of them came out as *mnemonic* all the same.

# %%
free = facts[facts["kind"] == "free"]
free["verdict"].value_counts()

# %% [markdown]
# Could that be chance? There are few answers, so some cue always evokes a concept that happens to fit. Shuffling the answers
# among the free facts says how often; and since a vector carries its answer, the better test is other questions (colour, month,
# animal, metal), which these cues were never trained on. Do they get the *concept's* answers, more than those of other concepts
# with the same answer?

# %%
count = count_invented(free)
print(f"cue evokes a concept with its answer: {count['matches']:.2f}")
print(
    f"with shuffled answers:                {count['null']['mean']:.2f}, at most {count['null']['max']:.2f}, p = {count['p_value']:.3f}"
)
print(f"other questions follow the concept:   {count['entailment']['matching']['entailment']:.2f}")
print(f"... and another with the same answer: {count['entailment']['matching']['entailment_control']:.2f}")
print("marks:", count["kinds"])

# %%
marked = free.assign(invented=mark_invented(free))
columns = [
    "cue",
    "concept",
    "answer",
    "verdict",
    "score",
    "entailment",
    "entailment_control",
    "same_answer",
    "invented",
]
marked.loc[marked["invented"].notna(), columns].sort_values("entailment", ascending=False).head(10).round(2)

# %% [markdown]
# **Try this.** Choose a cue from the table and ask yourself: the model's answers to all probes, about the cue and about the
# concept. Does a *look-alike* answer them differently?

# %%
row = marked[marked["invented"].notna()].sort_values("entailment", ascending=False).iloc[0]


def says(question):
    logits = model.forward([list(model.tokens.encode(question).ids)])
    return model.tokens.decode([int(logits[0, -1].argmax())]).strip()


model = study.model
pd.DataFrame(
    {
        name: [says(probe.format(filler)) for probe in study.task.probes]
        for name, filler in row[["cue", "concept"]].items()
    },
    index=list(study.task.probes),
)

# %% [markdown]
# **Try this.** In `by_kind`, add `prompt_swap` and `mediated_fraction`. Which of the two would you trust to tell a fact with two
# routes from a fact with one?
