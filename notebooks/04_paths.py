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
# # Paths that add up, and their exact checks
#
# **Purpose.** Take one recalled fact apart into paths from the tokens of its cue to the answer, see that they add up to the
# measured effect, and check the estimates by running the model.
#
# **Time.** Fifteen minutes to read; the cells take less than a minute on two CPU cores.
#
# **Take away.** Attribution is bookkeeping: it shares out an effect, exactly in sum, and says nothing about what would happen if
# a path alone were cut. That is asked of the model itself: `exact_path`, `verify` and `faithfulness`.

# %%
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import mnemo
from mnemo import plot
from mnemo.edge_patching import exact_path, path_edges

pd.set_option("display.max_colwidth", None)  # paths are long

task = mnemo.Task.read(mnemo.data_path("organism"))
model = mnemo.load(task.model_path)
contrasts = mnemo.make_contrasts(task, task.load_facts(), tokenizer=model.tokens)
fact = task.load_facts().find("VA==")
contrast = contrasts[fact.fact_id]
print("clean:  ", model.tokens.pieces(contrast.clean.tokens), "->", contrast.answer.text)
print("corrupt:", model.tokens.pieces(contrast.corrupt.tokens), "->", contrast.contrast_answer.text)

# %% [markdown]
# What is explained is the difference that the cue makes: the metric, logit(answer) - logit(other answer), of the clean prompt
# minus that of the corrupt one.

# %%
trace = mnemo.trace(task, contrast, model=model, top=300)
print(f"{trace.metric_clean:.2f} - {trace.metric_corrupt:.2f} = {trace.total:.2f} logits")
trace.path_table().head(8).round(3)

# %%
ax = plot.path_map(trace)

# %% [markdown]
# ## Conservation
#
# Each component passes on an averaged Jacobian between its corrupt and its clean input, which is exact for that pair of inputs. So
# what goes in comes out: after any number of blocks the stream carries the whole effect, whatever the position, and all paths
# together are the measured difference.

# %%
streams = trace.streams
pd.DataFrame(
    {"largest at": streams.abs().idxmax(axis=1).map(trace.token), "sum over positions": streams.sum(axis=1)}
).round(4)

# %%
print(
    f"all paths together are off by {trace.conserved:.1e} of the effect; the {len(trace.paths)} listed carry {trace.covered:.0%}"
)
trace.by("position").round(3).head(6)

# %% [markdown]
# The strongest single path carries a few percent. The *route* is clear all the same: grouped by position, nearly everything goes
# from the code's characters to `==`, and from there to the end.
#
# ## Exact checks
#
# **One path.** `exact_path` lets the corrupt value of the first writer travel along one path, and along nothing else, through the
# real model (path patching). The bookkeeping shares out an effect over the whole way from corrupt to clean; cutting one path of
# many, from the clean run, is another question.

# %%
checked = pd.DataFrame(
    {
        "path": path.text,
        "share of the effect (logits)": path.value,
        "cut alone (logits)": float(exact_path(model, [contrast], path=path_edges(model, path))),
    }
    for path in trace.paths[:12]
)
checked.round(2)

# %% [markdown]
# Cutting one of many parallel paths changes less than its share: near the clean run the others still carry the answer. That is no
# error, but the reason why a share must not be read as "this much is lost without it".
#
# **Single edges.** Estimates propose, `verify` patches the most promising ones exactly.

# %%
some = [contrast, *[c for c in contrasts.values() if c is not contrast][:3]]
edges = mnemo.attribute_edges(model, some, method="integrated_inputs")
verified = mnemo.verify(model, some, edges=edges, top=20, budget=60)
table = mnemo.top_edges(verified, 20)
print(
    f"correlation of estimate and exact effect over {len(table)} edges: {np.corrcoef(table['score'], table['exact'])[0, 1]:.2f}"
)
table[table["fact"] == fact.fact_id].head(8).round(2)

# %% [markdown]
# The same for whole heads (layer by head, in logits, all positions added up): block 0 gathers the code's characters, block 3 fetches
# what became of them. `plot.head_map` and `plot.component_map` draw this for the facts of a study.

# %%
nodes = mnemo.attribute_nodes(model, some)
nodes["heads"].sel(fact=fact.fact_id).sum("position").to_pandas().round(2)

# %% [markdown]
# **Circuits.** Keep the k strongest edges and let all others carry what they carry in the corrupt run: how much of the effect is
# left? Remove them instead: how much remains? Beside both, the same edges in random order.

# %%
traces = {c.fact.fact_id: mnemo.trace(task, c, model=model, top=300) for c in some}
curves = mnemo.faithfulness(model, some, edges=edges, traces=traces)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, setting in zip(axes, ("kept", "removed"), strict=True):
    plot.faithfulness_curve(curves, setting=setting, ax=ax)

# %%
curves[curves["edges"].isin([16, 64])].groupby(["setting", "edges", "order"])["share"].mean().unstack().round(2)

# %% [markdown]
# Several dozen of about a thousand edges hold the whole effect, and a few are enough to destroy it. Random edges, however many,
# do nothing until nearly all are there.
#
# **Try this.** `mnemo.attribute_edges(..., direction="denoising")` starts from the corrupt run. Which edges rank high in one
# direction and low in the other, and why? (Redundant routes hide from noising, routes that need each other from denoising.)

# %%
denoised = mnemo.attribute_edges(model, some, direction="denoising")
mnemo.top_edges(denoised, 6).query("fact == @fact.fact_id").round(2)

# %% [markdown]
# **Try this.** Trace a *rote* fact (`truth.csv` names them), and `trace.by("layer")`. Where does its way part from that of `VA==`?
