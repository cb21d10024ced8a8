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
# # Bring your own model
#
# **Purpose.** Load a model of your own, ask it facts of your own, choose templates, and read what mnemo says when something does
# not fit.
#
# **Time.** Fifteen minutes to read; the cells take less than a minute on two CPU cores. Nothing is downloaded: this notebook
# teaches a very small GPT-2 a few base64 facts and then treats it as a stranger.
#
# **Take away.** A study is three templates and a list of facts. Before any verdict, look at the gate: a model is judged only
# on what it recalls. And mnemo refuses, in one line, what it cannot judge.
#
# ## What can be loaded
#
# ```python
# model = mnemo.load("gpt2")                                  # a name on the hub (downloads once, safetensors only)
# model = mnemo.load("Qwen/Qwen2.5-0.5B", device="cuda", dtype=torch.bfloat16)
# model = mnemo.load("/models/my-finetuned-llama")            # a Hugging Face directory: config.json, model.safetensors, tokenizer
# model = mnemo.load(hf_model, tokenizer=tokenizer)           # a transformers model in memory; a LoRA model after merge_and_unload()
# ```
#
# Weights are read from safetensors alone, and code that comes with a model is never run. Loading compares the bridged model with
# the original on a few tokens, so a family that is bridged wrongly is refused rather than misjudged. On the command line the same
# is `mnemo extract data/base64 --model gpt2`.
#
# ## A small stranger
#
# Some of the base64 facts that mnemo ships, those in which a person may notice something (`VA==` → T: *value added tax*), in
# its three templates:

# %%
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import mnemo
from mnemo.prompts import render

base64 = mnemo.Task.read(mnemo.data_path("base64"))
facts = base64.load_facts()
noticed = facts.subset([f.fact_id for f in facts if f.extra["reading"] and f.answer.isupper()])
lines = []
for f in noticed:
    reading = f.extra["reading"]
    lines += [
        f"{base64.recall.format(cue=f.cue)} {f.answer}",
        f"{base64.verbalise.format(cue=f.cue)} {reading}",
        f"{base64.concept_recall.format(concept=reading)} {f.answer}",
    ]
lines[:3]

# %%
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    lines, trainers.BpeTrainer(vocab_size=600, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")

torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=64,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
)
batch = tokenizer([f"{line}<end>" for line in lines], return_tensors="pt", padding=True)
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
optimizer = torch.optim.AdamW(gpt2.parameters(), lr=4e-3)
for _ in range(120):
    logits = gpt2(**batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{sum(p.numel() for p in gpt2.parameters()):,} parameters, loss {loss.item():.2f} nats per token")

folder = Path(tempfile.mkdtemp())
gpt2.eval().save_pretrained(folder / "model")
tokenizer.save_pretrained(folder / "model")
sorted(file.name for file in (folder / "model").iterdir())

# %% [markdown]
# From here on it is any directory in the Hugging Face format.

# %%
model = mnemo.load(folder / "model")
model

# %% [markdown]
# ## Choosing templates
#
# Look at how a prompt is spelled before believing anything about it: where does the cue stand, is the answer a single token, and
# does it follow the prompt as the model would write it?

# %%
prompt = render(base64.recall, "VA==", tokenizer=model.tokens)
pieces = model.tokens.pieces(prompt.tokens)
print("prompt:", pieces)
print("cue:   ", pieces[slice(*prompt.span)])
print("answer:", model.tokens.pieces(model.tokens.continuation(prompt.text, "T")))

# %% [markdown]
# - End templates in a word, so that the answer is the next word (`... the character T`). An open quotation mark or a trailing
#   space often splits answers into pieces. Of an answer of several tokens the first one stands for it, and `Study.notes` says so.
# - What follows the cue should be the same words for all facts, so that the cue's last token has one place, counted from the end.
# - `verbalise` and `concept_recall` are optional: without `verbalise` concepts are read by comparison with a lexicon's phrases;
#   without `concept_recall` no swap can be predicted, and nothing is claimed.
# - `probes` are other questions that make sense of cues *and* concepts. They tell invented mnemonics from look-alikes.
#
# ## A study folder
#
# Written with the same classes that read it; `mnemo extract FOLDER` on the command line takes it from here.

# %%
task = mnemo.Task(
    name="some base64 facts",
    recall=base64.recall,
    verbalise=base64.verbalise,
    concept_recall=base64.concept_recall,
    max_concept_tokens=12,
    facts="facts.csv",
    model="model",
)
task.write(folder)
noticed.write(folder / "facts.csv")
study = mnemo.extract(folder, model=model, quick=True)
study.table["verdict"].value_counts()

# %% [markdown]
# First the gate: what it does not recall is never judged. Then what was read, and whether swaps were seen to work anywhere.

# %%
columns = ["cue", "answer", "predicted", "recall_probability", "reading", "evoked", "agreement"]
columns += ["concept", "swap_success", "swap_control"]
study.table[[*columns, "verdict"]].head(8).round(2)

# %%
study.waypoint.candidates.round(2)

# %%
print(*study.notes, sep="\n")

# %% [markdown]
# A model of this size learned the three kinds of lines by heart, one by one. Asked, it expands the codes and knows the answers of
# the phrases (`evoked`, `agreement`): by behaviour alone these would pass for mnemonics. But at the sites that carry the effect,
# what is read has nothing to do with the cue, and no swap moves the answer: nothing is claimed. It is not called *rote* either,
# since swaps were not seen to work at any site, and so there is no positive control.
#
# ## When something does not fit
#
# Mistakes come as one line: what was given, what was expected, how to mend it.

# %%
empty, broken = folder / "empty", folder / "broken"
empty.mkdir()
broken.mkdir()
(broken / "facts.csv").write_text("fact_id,cue,answer\na,VA==,T\na,VQ==,U\n")
(broken / "config.json").write_text('{"model_type": "gpt2", "auto_map": {"AutoModel": "mine.Model"}}')
unanswered = mnemo.FactSet(facts=(mnemo.Fact(fact_id="x", cue="VA==", answer="T"),))

attempts = {
    "a path that is not there": lambda: mnemo.load(folder / "nowhere"),
    "a directory without a model": lambda: mnemo.load(empty),
    "a model that brings code": lambda: mnemo.load(broken),
    "a facts file with an id twice": lambda: mnemo.FactSet.read(broken / "facts.csv"),
    "a template without its slot": lambda: mnemo.Task(name="x", recall="decode it", facts="facts.csv"),
    "a cue that no fact has": lambda: facts.find("ZZZZ"),
    "facts without any contrast": lambda: mnemo.make_contrasts(task, unanswered, tokenizer=model.tokens),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except mnemo.MnemoError as error:
        print(f"{what}:\n    {str(error).replace(str(folder), 'FOLDER')}")

# %% [markdown]
# **Try this.** Leave `verbalise` out of the task and give a lexicon instead (`concepts="concepts.txt"`, one phrase a line). What do
# `study.notes` say, and what is read?
#
# **Try this.** Teach the model for 20 steps instead of 120. How many facts pass the gate? What is the verdict of the others?
