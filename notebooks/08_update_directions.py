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
# # Do repeated steps on one batch agree?
#
# **Purpose.** Train on the same few facts again and again, and see whether successive steps move the weights the same way.
#
# **Time.** Five minutes to read; the cells take about a minute on one CPU core.
#
# **Take away.** LoRA's factors can be turned without changing the weight, so compare *effective* updates, the changes of B A. Put
# momentum-free gradients beside them, or an optimizer's memory is taken for agreement, and random steps from the same factors.

# %%
import tempfile
from pathlib import Path

import mnemo
from mnemo.learning import figures
from mnemo.learning.arms import divided, survey
from mnemo.learning.base import BaseConfig, make_base
from mnemo.learning.updates import FollowConfig, follow
from mnemo.model_source import read_model

config = BaseConfig(
    d_model=48, layers=3, heads=4, concepts=12, cues_per_concept=4, steps=300, batch=64, new=1, learning_rate=4e-3
)
folder = make_base(Path(tempfile.mkdtemp()) / "base", config, progress=False)
task, model = mnemo.Task.read(folder), mnemo.load(folder)
lesson = survey(model, task, facts=task.load_facts()).lesson("coincident", seed=0)
batch, _ = divided(lesson, taught=8, held=0, seed=0)
pupil = read_model(folder / "model", None)

# %% [markdown]
# The learning rate is found by search: the highest at which no step raises the loss on this very batch. Three optimizers: plain
# gradient descent, Lion (steps of signs, with memory) and AdamW.

# %%
names = ("sgd", "lion", "adamw")
found = {name: follow(pupil, batch, config=FollowConfig(optimizer=name, rank=4, steps=10)) for name in names}
{
    name: (f"{one.config.learning_rate:.2g}", f"{one.losses[0]:.2f} -> {one.losses[-1]:.2f}")
    for name, one in found.items()
}

# %% [markdown]
# Every step against every other one.

# %%
figures.cosine_matrices({name: one.cosines() for name, one in found.items()})

# %% [markdown]
# The same in numbers, for all weights together: the cosine of each update with the one before and with the net
# displacement, the same of gradients without any memory, and of random steps from the same factors.

# %%
table = found["lion"].table()
columns = ["step", "loss", "with_previous", "gradient_with_previous", "random_with_previous", "with_net", "null"]
table.loc[table["layer"] == -1, columns].round(3)

# %% [markdown]
# Do single facts pull the same way as the batch? `expected` is the cosine with the batch that orthogonal single gradients would
# have, so what is above it is agreement.

# %%
found["sgd"].singles.round(3)

# %% [markdown]
# **Try this.** Look at one block alone with `found["sgd"].cosines(layer=0)`. Does the disagreement sit in one place?
