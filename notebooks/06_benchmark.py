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
# # How far can the verdicts be trusted?
#
# **Purpose.** Score verdicts where the truth is known, beside the baseline that never intervenes, and see where they fail.
#
# **Time.** Ten minutes to read; the cells take about a minute on two CPU cores. Nothing is downloaded or trained.
#
# **Take away.** Benchmarks need organisms whose routes are known, negatives that look right, a behavioural baseline, intervals over
# concepts, and a look at calibration. A verdict is as good as its worst kind of negative.

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import mnemo
from mnemo import plot
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.scoring import read_truth, with_truth

# %% [markdown]
# ## An organism without training
#
# Its weights are written down, so that every route is exact: code → concept → answer for mnemonic facts; a private exception for
# idle facts, decoys and rote ones. `mediated=0.5` plants a second route: half of the answer's logit comes by a shortcut that is
# the code's own.

# %%
phrases = (mnemo.data_path("acronyms") / "concepts.txt").read_text(encoding="utf-8").split("\n")
config = WorldConfig(seed=1, concepts=8, cues_per_concept=4, decoys=4, idles=4, rotes=6, frees=0)
world = build_world(config, phrases[:60])


def compiled(mediated):
    folder = Path(tempfile.mkdtemp())
    model, tokenizer = compile_organism(world, mediated=mediated)
    write_folder(folder, world, model=model, tokenizer=tokenizer, name=f"compiled, mediated {mediated}")
    return mnemo.benchmark(folder, quick=True)


plain, metrics = compiled(1.0)
pd.DataFrame(metrics["verdicts"]).T.fillna(0).astype(int)

# %% [markdown]
# ## AUROC, beside a baseline
#
# The probability that a mnemonic fact ranks above a negative one; 0.5 is chance. *Agreement* asks the model what the cue stands
# for and what that phrase decodes to: behaviour alone. Now on the shipped, trained organism, with a part of its facts, to be
# quick. Intervals are resampled over whole concepts, since facts of one concept stand or fall together.

# %%
folder = mnemo.data_path("organism")
task = mnemo.Task.read(folder)
truth = read_truth(folder / "truth.csv", task.load_facts())
planted = truth[truth["kind"] == "mnemonic"].groupby("concept").head(2)
negatives = truth[truth["kind"].isin(["idle", "decoy", "rote"])].groupby("kind").head(20)
part = task.load_facts().subset([*planted["fact_id"], *negatives["fact_id"]])
trained, trained_metrics = mnemo.benchmark(task, facts=part, quick=True)


def auroc_plot(metrics, ax):
    rankers = {"score": "o", "agreement": "s", "sufficiency": "^"}
    for i, (ranker, marker) in enumerate(rankers.items()):
        found = [metrics["auroc"][kind][ranker] for kind in ("idle", "decoy", "rote")]
        value, low, high = (np.array([one[name] for one in found], dtype=float) for name in ("value", "low", "high"))
        at = np.arange(3) + (i - 1) * 0.2
        ax.errorbar(at, value, [value - low, high - value], fmt=marker, capsize=3, label=ranker)
    ax.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(3), ["idle", "decoy", "rote"])
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("AUROC (0.5: chance)")
    ax.set_xlabel("mnemonic facts against")
    ax.legend(loc="lower right", fontsize=8)


figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, name, found in zip(axes, ("compiled", "trained"), (metrics, trained_metrics), strict=True):
    auroc_plot(found, ax)
    ax.set_title(name)

# %% [markdown]
# Agreement does not see idle facts at all. *Sufficiency* alone ranks them *above* mnemonic ones in the trained organism.
#
# ## Which verdict for which kind?

# %%
facts = with_truth(trained.table, truth)
ax = plot.verdict_overview(facts, kinds=list(facts["kind"]))

# %%
for kind, rate in trained_metrics["false_positives"].items():
    print(f"{kind}: {rate['value']:.3f} judged recalled through a concept [{rate['low']:.3f}, {rate['high']:.3f}]")

# %% [markdown]
# ## Calibration
#
# `score` is a probability fitted to organisms for development: of the facts with a score near 0.7 some 70% should be mnemonic, also
# in organisms that the fit never saw. The calibration error is the mean gap; nearly all scores lie at the ends, so in the middle there
# are few facts to say anything about.

# %%
bins = pd.cut(facts["score"].astype(float), np.linspace(0, 1, 6), include_lowest=True)
calibration = facts.assign(mnemonic=facts["kind"] == "mnemonic").groupby(bins, observed=True)
calibration = calibration.agg(facts=("score", "size"), score=("score", "mean"), mnemonic=("mnemonic", "mean")).round(3)
print(f"calibration error {trained_metrics['calibration_error']['value']:.3f}")
calibration

# %% [markdown]
# ## Where it fails: two routes
#
# With half of the answer coming by a shortcut, a swap of the concept no longer flips the answer for sure. The verdict is then
# *unsure* or worse; the share that goes through the concept is measured all the same.

# %%
redundant, redundant_metrics = compiled(0.5)
pd.DataFrame(
    {
        "mediated, measured": {
            "planted 1.0": metrics["mediated_fraction"]["mnemonic"]["value"],
            "planted 0.5": redundant_metrics["mediated_fraction"]["mnemonic"]["value"],
        },
        "balanced accuracy": {
            "planted 1.0": metrics["balanced_accuracy"]["value"],
            "planted 0.5": redundant_metrics["balanced_accuracy"]["value"],
        },
    }
).round(3)

# %% [markdown]
# What was measured over a whole suite of trained and compiled organisms, nulls and variants, and where the verdicts fall short
# there, stands in `benchmarks/verdicts.md`. Read it before you trust a verdict on a model of your own; there, nobody knows the truth.
#
# **Try this.** Plant `mediated=0.75` and `mediated=0.25`. From which share on does the verdict turn?
#
# **Try this.** What does `redundant.table["verdict"]` say of the facts with two routes? Which column would have told you?

# %%
redundant.table.groupby("verdict")[["swap_success", "sufficiency", "mediated_fraction"]].mean().round(2)
