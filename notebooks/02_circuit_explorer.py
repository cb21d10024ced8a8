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
# Tokens stand along the bottom (those of the cue in green), layers upwards; circles are heads, squares MLPs, sized by the
# effect that passes through them. The green label stands at the waypoint and says which concept was read there. With the
# mouse, or with the keyboard (Tab into the circuit, arrow keys, Enter):
#
# 1. Select the `MLP` of layer 1 above `==`. Which concept, and which tokens, does the stream read as after it?
# 2. Type another concept (`central processing unit`) and press *swap concept*. The prediction was made beforehand, by
#    asking the model about that concept alone. Compare *after* with *control*.
# 3. *undo*, then select and *ablate* a head. Which answer comes, and does the control do the same?
# 4. Select a path on the right: its steps say what each carries. *ablate* changes what its first token sends along this path
#    alone. One path is a small part of the effect; how many must go until the answer does?
# 5. Lower *least share* until weak components appear; group the heads by layer; put a second fact *beside it*.
# 6. *save view* keeps what you see as JSON (a graph that networkx reads is in it); *HTML* makes a page that opens without
#    a kernel, for colleagues.
#
# Whatever you click can be done from Python too, on the same session:

# %%
session = explorer.session
session.do({"do": "swap", "concept": "central processing unit"})
explorer.refresh()
session.outcome

# %% [markdown]
# The log of interventions is a script. It says on which study it was made, and stops where that has changed.

# %%
print(session.code())

# %% [markdown]
# Mistakes cost nothing: they are shown in place, and the circuit stays as it was.

# %%
session.do({"do": "swap", "concept": "a phrase that this model cannot spell"})
session.error

# %% [markdown]
# **Try this.** The most instructive facts are those whose cue evokes a concept with the right answer that the recall does
# *not* use. The model itself says that they agree (`agreement`: how likely the answer is when it is asked about what the
# cue evokes), and still the verdict is *rote*: swapping the concept moves nothing. Show one, beside `VA==`, and swap both.

# %%
columns = ["fact_id", "cue", "answer", "concept", "agreement", "verdict", "swap_success", "swap_control"]
unused = study.table[(study.table["verdict"] != "mnemonic") & (study.table["agreement"] > 0.5)]
unused[columns].sort_values("agreement", ascending=False).head().round(2)

# %%
if not unused.empty:
    session.do({"do": "beside", "fact": unused["fact_id"].iloc[0]})
    explorer.refresh()
session.outcomes

# %% [markdown]
# Two models, or two checkpoints of one, stand side by side with `mnemo.explore(study, "VA==", compare=other_study)`. Where
# anywidget cannot be loaded, the same session has a classic front end: `mnemo.explore(study, classic=True)`.
