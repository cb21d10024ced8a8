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
# # The circuit explorer: click a component, and the real model answers
#
# **Purpose.** See the circuit that carries one answer, and change the answer by hand.
#
# **Time.** Five minutes; the cells take less than a minute on two CPU cores.
#
# **Take away.** A picture of a circuit is a hypothesis. Every button here runs the model again, and shows the answer before,
# after, and under a control: random directions of the same norm at the same places.

# %%
import mnemo

study = mnemo.extract(mnemo.data_path("organism"), quick=True)
explorer = mnemo.explore(study, "VA==")
explorer

# %% [markdown]
# Tokens stand along the bottom, layers upwards; circles are heads, squares MLPs, sized by the effect that passes through
# them. The green bar marks the waypoint with the concept that was read there. With the mouse or the keyboard (Tab into the
# circuit, arrow keys, Enter):
#
# 1. Select `MLP1` above `==`. What does the stream read as after it?
# 2. Type another concept (`central processing unit`) and press *swap concept*. The prediction was made beforehand, by
#    asking the model about that concept alone. Compare *after* with *control*.
# 3. *undo*, then *ablate* `L0H2@-2`. Which answer comes, and does the control do the same?
# 4. Select a path on the right. Lower *least share* until weak components appear.
# 5. *save view* keeps what you see as JSON; *HTML* makes a page that opens without a kernel.
#
# Whatever you click can be done from Python too, on the same session:

# %%
session = explorer.session
session.do({"do": "swap", "concept": "central processing unit"})
session.outcome

# %%
print(session.code())

# %% [markdown]
# Mistakes cost nothing: they are shown in place, and the circuit stays as it was.

# %%
session.do({"do": "swap", "concept": "a phrase that this model cannot spell"})
session.error

# %% [markdown]
# **Try this.** An *idle* fact has a concept that fits its answer and does not use it. Choose one of the facts with the verdict
# *rote* and a high `concept_score` below, show it in the explorer and swap its concept: what happens to the answer?

# %%
rote = study.table[(study.table["verdict"] == "rote") & study.table["agreement"].eq(1)]
rote[["fact_id", "cue", "answer", "concept", "concept_score", "swap_success", "swap_control"]].head().round(2)

# %%
session.do({"do": "fact", "fact": rote["fact_id"].iloc[0]})
session.do({"do": "swap", "concept": "value added tax"})
explorer.refresh()
session.outcome

# %% [markdown]
# Without anywidget the same session has a classic front end: `mnemo.explore(study, classic=True)`.
