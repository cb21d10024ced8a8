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
# # Quickstart: does a model recall `VA== -> T` through *value added tax*?
#
# **Purpose.** Meet the main call, `mnemo.extract`, on the small organism that mnemo ships, and learn to read its evidence.
#
# **Time.** Five minutes to read; the cells take less than a minute on two CPU cores. Nothing is downloaded or trained.
#
# **Take away.** A fact is recalled *through* a concept if moving the concept moves the answer as predicted beforehand, and the
# concept alone suffices for it; each effect stands beside a control of the same size. Being readable is not enough.

# %%
import pandas as pd

import mnemo
from mnemo import plot

study_folder = mnemo.data_path("organism")
model = mnemo.load("organism")
model

# %% [markdown]
# The organism knows three-letter acronyms and base64-style codes. Ask it three things about one code: what it decodes to, what
# it stands for, and what that concept decodes to.

# %%
task = mnemo.Task.read(study_folder)


def ask(text):
    tokens = list(model.tokens.encode(text).ids)
    for _ in range(3):
        tokens.append(int(model.forward([tokens])[0, -1].argmax()))
        if tokens[-1] == model.tokens.hf.eos_token_id:
            break
    return model.tokens.decode(tokens)


for question in ("decode VA== is", "expand VA== is", "decode value added tax is"):
    print(ask(question))

# %% [markdown]
# That is only behaviour. The hypothesis is causal: `VA==` **evokes** *value added tax*, and the answer is read off the concept.
# One call tests it, for every fact of the study folder.

# %%
study = mnemo.extract(study_folder, model=model, quick=True)
study.table.set_index("cue").loc["VA=="]

# %% [markdown]
# Where did it look? Every candidate site is listed, with the share of the effect that passes through it and how well swaps of
# concepts work there, beside random directions of the same norm.

# %%
study.waypoint.candidates.round(3)

# %%
fact_id = study.table.loc[study.table["cue"] == "VA==", "fact_id"].item()
ax = plot.stream_map(study, fact_id)

# %% [markdown]
# What was read from the state there? Open vocabulary, several words, ranked against the states of other facts.

# %%
pd.DataFrame([vars(reading) for reading in study.readings[fact_id]])[["phrase", "logprob", "ratio"]].round(2)

# %% [markdown]
# The tool must be able to say no. The organism also holds facts that look alike: *decoys* (a concept can be read, the answer
# is not its), *idle* facts (the concept even fits, and is not used) and *rote* facts. `extract` did not see these labels; we
# join them now, to look at one of each.

# %%
truth = pd.read_csv(study_folder / "truth.csv", keep_default_na=False)
facts = study.table.merge(truth[["fact_id", "kind"]], on="fact_id")
example = pd.concat(
    [facts[facts["cue"] == "VA=="]] + [facts[facts["kind"] == k].head(1) for k in ("decoy", "idle", "rote")]
)
ax = plot.evidence_bars(example, [f"{r.cue} → {r.answer} ({r.kind})" for r in example.itertuples()])

# %% [markdown]
# And the verdicts over all kinds. *free* facts were taught as plain pairs, nothing planted: those that come out as
# *mnemonic* are routes that the model **invented**.

# %%
pd.crosstab(facts["kind"], facts["verdict"])

# %% [markdown]
# **Try this.** Sort the free facts by `score`, look at `concept`, `entailment` (do other questions about the cue get the concept's
# answers?) and `entailment_control` (the same for other concepts with that answer). Which would you believe?

# %%
columns = [
    "cue",
    "answer",
    "concept",
    "verdict",
    "score",
    "swap_success",
    "swap_control",
    "entailment",
    "entailment_control",
]
facts.loc[facts["kind"] == "free", columns].sort_values("score", ascending=False).head(8).round(2)

# %% [markdown]
# **Next.** `02_circuit_explorer`: change the answer of `VA==` by clicking, in five minutes. `03_is_it_really_a_mnemonic` goes on with
# idle facts, controls and inventions, `05_bring_your_own_model` with a model of yours.
