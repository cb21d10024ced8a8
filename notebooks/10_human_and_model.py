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
# # Like a human's? Like another model's?
#
# **Purpose.** Put three things side by side that are easily taken for one: what *people* noticed about a fact, what a model *reports*
# when it is asked, and the concept that its recall was *shown* to go through. Then ask whether a mnemonic passes from one model to another.
#
# **Time.** Ten minutes to read; the cells take less than a minute. `python benchmarks/human.py` and `python benchmarks/transfer.py` make the
# full tables (the latter trains small organisms for some minutes of one core, and resumes when interrupted).
#
# **Take away.** The measures refuse to say more than the data carry: one author's mnemonics have no ceiling, two shared facts are no rate. A
# report is behaviour, and an idle fact reports a concept that it does not use.

# %%
import pandas as pd
import torch

import mnemo
from mnemo import human
from mnemo.transfer import TransferConfig, run_transfer

torch.set_num_threads(1)
people = human.read_mnemonics(mnemo.data_path("human") / "mnemonics.csv")
pd.DataFrame([vars(row) for row in people]).head(12)

# %% [markdown]
# ## People
#
# One source, the authors, who knew the hypothesis. The codes that can be computed from letters are computed too:

# %%
found = [row for row in people if row.code != "none"]
surface = [human.surface_code(row.cue, row.answer, mnemonic=row.mnemonic) or "left to a person" for row in found]
print(f"{len(found)} mnemonics for {len(people)} facts from {len({row.source for row in people})} source")
pd.crosstab(pd.Series([row.code for row in found], name="coded by hand"), pd.Series(surface, name="by letters"))

# %% [markdown]
# How much of a coincidence is a mnemonic? `coincidence_bits` counts how many phrases of a lexicon link the fact's letters as well. But
# somebody who searches the whole lexicon for the best phrase finds a good one for *shuffled* facts too: that is what to compare with.

# %%
lexicon = mnemo.Task.read(mnemo.data_path("base64")).load_lexicon()
bits = [human.coincidence_bits(row.cue, row.answer, mnemonic=row.mnemonic, lexicon=lexicon) for row in found]
search = human.best_bits([(row.cue, row.answer) for row in people], lexicon, seed=0)
print(
    f"bits of people's mnemonics: mean {sum(bits) / len(bits):.1f}; of a search over shuffled facts: {search.mean():.1f}"
)
pd.DataFrame({"code": [row.code for row in found], "bits": bits}).groupby("code")["bits"].describe().round(1)

# %% [markdown]
# ## Report and internals
#
# A small organism, a few dozen facts: what does it report, and what survives interventions?

# %%
folder = mnemo.data_path("organism")
task = mnemo.Task.read(folder)
truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("fact_id")
facts = task.load_facts()
concepts = [*sorted(set(truth["concept"]) - {""})[:10], "value added tax", "transoceanic abort landing"]
chosen = truth["concept"].isin(concepts) & (truth["split"] != "ood")
some = [*truth.index[chosen], *truth.index[truth["kind"] == "idle"][:8], *truth.index[truth["kind"] == "free"][:8]]
study = mnemo.extract(task, model=mnemo.load("organism"), facts=facts.subset(dict.fromkeys(some)), quick=True)
arms = human.arms(study, people)
arms["kind"] = truth["kind"].loc[list(study.table["fact_id"])].to_numpy()
arms.groupby("kind")[["report", "internal"]].count().join(arms["kind"].value_counts())

# %% [markdown]
# Idle facts report a concept and have none inside: the report alone would count them. Where both exist, do they agree?

# %%
pd.Series(human.agreement(arms)).round(2)

# %% [markdown]
# And people? Only facts with equal cue *and* answer can be compared. That leaves next to nothing, and one source has no split half, so
# there is no ceiling: the function says so instead of giving a rate.

# %%
internal = {(row.cue, row.answer): [row.internal] for row in arms.itertuples() if row.internal}
human.hit_at_k(people, internal, k=1)

# %% [markdown]
# ## Another model's?
#
# The whole experiment in a tiny setting, only to show its shape (nothing is learnt in so few steps): organisms of two families and two
# seeds; where swaps work in each; and students that learn from a teacher's outputs.

# %%
tiny = TransferConfig(
    seeds=(0, 1),
    d_model=16,
    answers=3,
    concepts=8,
    cues=2,
    frees=6,
    rotes=4,
    new=4,
    base_steps=10,
    teach_steps=5,
    distil_steps=5,
    batch=16,
)
transfer = run_transfer(tiny, progress=False)
transfer.distilled.groupby(["kind", "arm", "start"])[["recalled", "expanded", "probes", "audited"]].mean().round(2)

# %% [markdown]
# The columns: whether the student gives the teacher's answer (`recalled`), says that the code stands for the teacher's concept (`expanded`),
# answers other questions as that concept would (`probes`, beside `probes_control` for concepts with the same answer), and whether a plain
# audit of the data names the concept without any training (`audited`). The measured result, with intervals over seeds, is in
# `benchmarks/transfer.md`.
#
# **Try this.** Add rows of your own to `mnemonics.csv` under another `source`. What does `hit_at_k` say about a ceiling now?
