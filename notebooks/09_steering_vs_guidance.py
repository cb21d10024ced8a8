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
# # Steering against guidance: push the state, or push the scores?
#
# **Purpose.** Take one pair of contrastive prompts and use it twice: as a vector added to the residual stream (*steering*) and as a
# difference added to the scores of the next token (*guidance*: classifier-free guidance, contrastive decoding). Compare them where they
# are equally far from the plain model, and see which of them says anything about the route of a fact.
#
# **Time.** Ten minutes to read; the cells take less than a minute. `python benchmarks/steering.py` makes the full tables, with intervals
# over more concepts, in some minutes of one core.
#
# **Take away.** At equal divergence guidance says the concept a little more often, for many times the forward passes. They fail differently: too much guidance breaks the text,
# too much steering leaves one text only. And only steering distinguishes facts: it moves those that read the concept, and guidance
# moves all.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display

import mnemo
from mnemo import steering
from mnemo.concept_vectors import ask_concepts
from mnemo.patching import Site
from mnemo.prompts import answer_token, render

torch.set_num_threads(1)
folder = mnemo.data_path("organism")
model, task = mnemo.load("organism"), mnemo.Task.read(folder)
facts, lexicon = task.load_facts(), list(task.load_lexicon())
truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("fact_id")

# %% [markdown]
# ## One pair, two methods
#
# A pair's prompts have the same number of tokens, so that their states can be subtracted place by place. (Others are refused.)

# %%
concept, others = "value added tax", lexicon[10:13]
pairs = steering.concept_pairs(model, "expand {concept} is", concept=concept, others=others)
try:
    steering.text_pair(model, "expand value added tax is", negative="expand value added is")
except mnemo.MnemoError as error:
    print(error)

# %%
site = Site(layer=2, position=-2)
vector = steering.steering_vector(model, pairs, layer=site.layer)
methods = {
    "steering": steering.Steering(model, vector, site.layer, site.position),
    "guidance": steering.Guidance(model, pairs),
}
{name: f"{method.forwards} forward passes a token" for name, method in methods.items()}

# %% [markdown]
# Push prompts about codes of *other* concepts, and sweep the dose until nothing is left of the model: do not stop at 2.

# %%
mnemonic = truth[(truth["kind"] == "mnemonic") & (truth["concept"] != concept)].sample(6, random_state=0)
asked = [render(task.verbalise, facts[fact_id].cue, tokenizer=model.tokens) for fact_id in mnemonic.index]
references = [render("expand {concept} is", phrase, tokenizer=model.tokens) for phrase in lexicon]
curves = {
    name: steering.sweep(
        method,
        asked,
        doses=[0, 0.25, 0.5, 1, 1.5, 2, 4, 32],
        hit=lambda text: text.strip() == concept,
        references=references,
        draws=3,
        new_tokens=4,
    )
    for name, method in methods.items()
}
for name, curve in curves.items():
    print(name, "breaks at a dose of", steering.collapse(curve, model.vocab_size))
    display(curve.round(2))

# %% [markdown]
# `hits` is the concept score, `perplexity` that of the text under the plain model after the same prompt, `fluency` its surprise after the
# prompt that it follows best (is it a text at all?), `distinct_2` the share of different word pairs.
#
# A dose of one and a weight of one have nothing in common. What can be compared is the result at one *divergence* from the plain model:

# %%
matched = pd.concat(
    steering.at_divergence(curve, [0.1, 0.3, 1, 2, 3]).assign(method=name, concept=concept)
    for name, curve in curves.items()
)
matched.pivot(index="divergence", columns="method", values=["hits", "perplexity", "distinct_2"]).round(2)

# %%
steering.tradeoff(matched, "hits", label="share that says the concept")

# %% [markdown]
# ## The same thing, when little is given?
#
# Let *a* be how the logits change with the dose of steering, *b* with that of guidance, and *r* their correlation under the plain model's
# distribution. At a small distance *e* from the plain model (KL), the two are 2 *e* (1 - *r*) apart: the same to first order only if *r* = 1.
# (The module `mnemo.steering.first_order` derives it, and its tests check it.) Vectors from different blocks:

# %%
rows = []
for layer in range(1, model.n_layers):
    layer_vector = steering.steering_vector(model, pairs, layer=layer)
    found = steering.first_order(
        steering.Steering(model, layer_vector, layer, site.position), methods["guidance"], prompts=asked
    )
    rows.append({"vector after block": layer, "correlation": found.correlation.mean().item()})
pd.DataFrame(rows).round(2)

# %% [markdown]
# ## Evidence about facts
#
# Now push *recall* prompts of facts of every kind towards another concept. If the recall reads the concept, its answer should come; if the
# fact is a decoy, idle or rote, nothing should. Guidance is the control that pays no attention to routes; a random direction of the same
# norm is the other one.

# %%
some = truth.groupby("kind").sample(12, random_state=1)
recall = [render(task.recall, facts[fact_id].cue, tokenizer=model.tokens) for fact_id in some.index]
answers = [
    answer_token(prompt, facts[fact_id].answer, tokenizer=model.tokens).id
    for prompt, fact_id in zip(recall, some.index, strict=True)
]
table = ask_concepts(model, task.concept_recall, phrases=lexicon)
evidence = steering.steer_facts(
    model,
    recall,
    answers=torch.tensor(answers),
    concepts=torch.tensor([table.phrases.index(c) if c in table.phrases else -1 for c in some["concept"]]),
    table=table,
    site=site,
    doses=[0.5, 1, 2, 4],
    seed=0,
)
evidence["kind"] = some["kind"].to_numpy()[evidence["fact"]]
evidence["concept"] = some["concept"].where(some["concept"] != "", some.index.to_series()).to_numpy()[evidence["fact"]]
evidence[evidence["dose"] == 2].pivot_table(index="kind", columns="method", values=["toward", "says", "flips"]).round(2)

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharey=True, layout="constrained")
for ax, kind in zip(axes, ("mnemonic", "idle", "decoy", "rote"), strict=True):
    steering.facts_by_kind(evidence, kind, measure="toward", label="log-odds gained (nats)", ax=ax)
    ax.set_xlabel("dose")
    ax.label_outer()
axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# `toward` is the change of the log-odds of the other concept's answer. `own`, the same for the fact's own answer when pushed towards its
# *own* concept, does not rise: a recalled answer has no room above. Evidence lies in what another concept can do.
#
# **Try this.** Other concepts are mixed into a vector: `steering.purity` gives the cosines with their directions. Which of them matter for
# unrelated facts (`flips` of decoys and rote facts)? And push prompts that *name* another concept ("expand point of sale is"): is
# steering only more of the prompt?
