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
# # Are mnemonics cheaper to learn, and when do they appear?
#
# **Purpose.** Teach a small model facts that a concept helps to recall, and the same cues with shuffled answers, and follow the
# route through the concept while both are learned.
#
# **Time.** Ten minutes to read; the cells take about a minute on one CPU core, most of it to train the model that learns.
#
# **Take away.** A fact whose answer follows from a concept that its cue evokes takes a fraction of the steps, and the route
# through the concept can be seen to grow. Part of the difference is a head start: such answers are less surprising
# before the first step. So compare at equal surprisal too.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import mnemo
from mnemo.learning import figures
from mnemo.learning.arms import divided, survey
from mnemo.learning.base import BaseConfig, make_base
from mnemo.learning.emergence import Watch, choose_site
from mnemo.learning.first_gradient import first_gradient, shares
from mnemo.learning.runs import LearnConfig, learn
from mnemo.model_source import read_model

# %% [markdown]
# The learner is a *base organism*: it knows concepts (`decode value added tax is T`) and what codes stand for (`expand VA== is
# value added tax`), but it was never asked `decode VA== is`. This one is smaller than the default, for speed.

# %%
config = BaseConfig(
    d_model=48, layers=3, heads=4, concepts=12, cues_per_concept=4, steps=300, batch=64, new=1, learning_rate=4e-3
)
folder = make_base(Path(tempfile.mkdtemp()) / "base", config, progress=False)
task, model = mnemo.Task.read(folder), mnemo.load(folder)
known = survey(model, task, facts=task.load_facts())
pd.Series([known.kind(row) for row in range(len(known.said.facts))]).value_counts()

# %% [markdown]
# *Coincident* facts have the answer of the concept that their cue evokes, *free* ones that of some other concept,
# *impossible* ones an answer that no concept has. The *rote* arm has the cues of the coincident one and its answers, dealt out so
# that no concept helps. One call teaches all arms in batches and one fact at a time, and can be interrupted.
# (`mnemo learn` does the same from the command line.)

# %%
quick = LearnConfig(runs=2, taught=10, held=6, alone=2, hows=("full",), steps=16, full_rate=3e-4, traced=2)
learned = learn(folder, config=quick, progress=False)
measures = ["steps to recall", "times the steps", "times the steps at equal surprisal", "old kept"]
learned.summary[learned.summary["measure"].isin(measures)].round(2)

# %% [markdown]
# Two runs make wide intervals; `benchmarks/learning.md` has the numbers over more organisms.

# %%
figures.efficiency(learned.courses)

# %% [markdown]
# Where is the concept? At the site where, before anything is taught, concept vectors from the *recall* prompts make the model say
# another phrase (first hop) and, in a concept's own prompt, give another answer (second hop), each above random directions.

# %%
site, candidates = choose_site(model, known)
candidates.round(3)

# %% [markdown]
# Along the course: what the paths through the concept's direction carry, what swaps do, and what taking the concept out costs.

# %%
figures.emergence(learned.curves)

# %% [markdown]
# What does the very first step amplify? Of the change that it is predicted to make between a fact and its contrast, the
# share that flows through the concept's direction, by hop, beside the direction of two other concepts.

# %%
taught, _ = divided(known.lesson("coincident", seed=0), taught=10, held=0, seed=0)
watch = Watch(known, model.tokens.hf, site, taught, traced=2)
shares(first_gradient(read_model(folder / "model", None), watch)).round(3)

# %% [markdown]
# **Try this.** Watch your own training with `mnemo.learning.callback.WatchCallback(watch, every=10)` in a `Trainer`. Or teach with
# `LearnConfig(hows=("lora",))`: is the ratio the same?
