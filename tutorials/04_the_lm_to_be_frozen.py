# %% [markdown]
# # 04 · The LM to be frozen: loss on answers only
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/04_the_lm_to_be_frozen.ipynb)
#
# At the end you will know
#
# * the next-token loss, and why supervised fine-tuning (SFT) puts it on the answer alone;
# * what a small transformer learns of a small world in a minute, and in which order;
# * what "frozen" means in code, and how to check it.
#
# Time: 30 minutes. You need: tutorial 02, cross-entropy.
#
# Builds on: [SFT, the first stage of RLHF (Ouyang et al. 2022)](https://arxiv.org/abs/2203.02155).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import random

import torch
from lesson import BLUE, FAST, ORANGE, Log, axes, check, show, source

from alignpro_mini.frozen import FrozenLM, SamplingConfig
from alignpro_mini.sft import SFTConfig, answer_loss, encode_pairs, train_sft
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.worlds.toy import ToyWorld

# %% [markdown]
# ## The world
#
# Requests ask about a town. Answers hold facts, more or fewer of them, friendly or not. A *cue* in the prompt ("Give
# every detail.") fixes a part of the answer's style. The corpus is generated, so we know what is true.

# %%
world = ToyWorld("quality", seed=0)
corpus = world.corpus(600 if FAST else 20_000, random.Random(0))
for prompt, answer in corpus[:4]:
    print(f"prompt  {prompt}\nanswer  {answer}\n")

# %% [markdown]
# ## The loss
#
# A model that gives the right next token the probability p pays −ln p. A prompt with its answer is one row:
#
#     <|user|> Tell me about Oakdale . <|assistant|> Oakdale is a town . <|end|>
#
# The loss is the mean over the *answer's* tokens, with the end token. The prompt is given, not predicted: in use, people
# write it. Three tokens by hand:

# %%
tokenizer = Tokenizer.train([text for pair in corpus[:2000] for text in pair], vocab_size=400 if FAST else 640)
shape = TransformerConfig(
    tokenizer.vocab_size, d_model=32 if FAST else 96, n_layers=1 if FAST else 2, n_heads=2 if FAST else 4
)
model = Transformer(shape, torch.Generator().manual_seed(0))
prompt_ids, answer_ids = tokenizer.chat_with_answer("Tell me about Oakdale.", "Oakdale")


def naive_loss(model, prompt_ids, answer_ids):
    row = torch.tensor([prompt_ids + answer_ids])
    logp = model(row)[0].log_softmax(-1)  # the logits at t predict the token at t + 1
    start = len(prompt_ids)
    return -sum(logp[start + i - 1, token] for i, token in enumerate(answer_ids)) / len(answer_ids)


source(answer_loss)
ours = naive_loss(model, prompt_ids, answer_ids)
torch.testing.assert_close(answer_loss(model, [(prompt_ids, answer_ids)]), ours)
print(
    f"untrained: {ours.item():.1f} nats a token; guessing blindly costs ln {tokenizer.vocab_size} = {torch.tensor(tokenizer.vocab_size).log():.1f}"
)

# %% [markdown]
# ## Training, and what comes first
#
# `train_sft` is a library function: give it a model and encoded pairs. A *stage* is where it reports. `Log` keeps the
# losses, and at each report we ask the model the same question.

# %%
question, answers = "Tell me about Oakdale. Give every detail.", []


def ask(step):
    lm = FrozenLM(Transformer(shape), tokenizer, SamplingConfig(temperature=0.0))
    lm.model.load_state_dict(model.state_dict())
    answers.append(lm.answer([question])[0].text)


log = Log(ask)
config = SFTConfig(steps=60 if FAST else 500, batch_size=8 if FAST else 32, heldout_examples=32 if FAST else 256)
examples = encode_pairs(corpus, tokenizer, 160)
train_sft(model, examples, config, log, torch.Generator().manual_seed(0))
steps = [row["step"] for row in log.rows]
for step, answer in list(zip(steps, answers))[:: 1 if FAST else 3]:
    print(f"step {step:4}: {answer[:100]}")

# %% [markdown]
# First it learns which words there are, then sentences, then that an answer is about *one* town, and last which facts
# belong to which town. Copying the town from the prompt is the hardest step: it needs two layers that work together.

# %%
figure, ((ax,),) = axes(1, 1, (7, 3.2))
ax.plot(steps, [row["loss"] for row in log.rows], color=BLUE, label="training")
ax.plot(steps, [row["heldout_loss"] for row in log.rows], color=ORANGE, label="held out")
ax.set(xlabel="step", ylabel="loss, nats per answer token", ylim=(0, None))
ax.legend(frameon=False)
for i, shift in ((0, (14, -8)), (len(steps) // 3, (10, 22)), (-1, (-190, 50))):
    place = {
        "xytext": shift,
        "textcoords": "offset points",
        "fontsize": 7,
        "arrowprops": {"arrowstyle": "-", "lw": 0.5},
    }
    ax.annotate(answers[i][:38] + "…", (steps[i], log.rows[i]["loss"]), **place)
show(figure)
assert log.rows[-1]["heldout_loss"] < log.rows[0]["heldout_loss"]

# %% [markdown]
# The two curves lie on each other: nothing is memorised, because the corpus is larger than what was read. The loss does
# not go to 0. The corpus itself is random (how many facts? kind or not?), and no model can know a coin before it falls.
#
# ## Frozen
#
# From here on nobody may change these weights. `FrozenLM` puts the model in eval mode, switches gradients off, and takes
# a checksum over every bit. After each later stage the checksum is compared.

# %%
source(FrozenLM.assert_unchanged)
frozen = FrozenLM(model, tokenizer)
frozen.assert_unchanged("nothing")
with torch.no_grad():
    next(iter(model.parameters())).view(-1)[0] += 1e-6  # somebody touches one weight
try:
    frozen.assert_unchanged("a careless line")
    raise AssertionError("it should have been noticed")
except RuntimeError as error:
    print("RuntimeError:", error)

# %% [markdown]
# ## Exercise ★★ (15 minutes): put the loss on the prompt too
#
# Write the loss over prompt *and* answer: every token of a row but the first is predicted. `examples` are pairs (prompt_ids,
# answer_ids); use `answer_loss`. Predict: in the trained model, which loss is larger, this one or that of the answer alone?

# %% tags=["stub"]


def loss_on_both(model, examples):
    return None  # your code


larger = None  # your prediction: "both" or "answer"

# %%
with torch.no_grad():
    (prompt, answer), pair = examples[0], examples[:1]
    check(loss_on_both(model, pair), naive_loss(model, (prompt + answer)[:1], (prompt + answer)[1:]), within=1e-4)
    answer_only, both = answer_loss(model, examples[:32]).item(), loss_on_both(model, examples[:32])
check(larger, None if both is None else "both" if both > answer_only else "answer")
if both is not None:
    print(f"prompt and answer {both:.2f} nats a token, answer alone {answer_only:.2f}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def loss_on_both(model, examples):
#     return answer_loss(model, [((prompt + answer)[:1], (prompt + answer)[1:]) for prompt, answer in examples])
#
#
# larger = "both"
# ```
#
# The prompt's tokens were never trained, so their loss is large: 3.07 nats a token for both, 0.13 for the answer
# alone. Trained on both, the model would learn to write requests, too: which towns people ask about. That is not what it is for.
# </details>
#
# ## Questions
#
# 1. Why is the mean over all answer tokens of a batch, and not the mean of the rows' means?
# <details><summary>Answer</summary>
# With a mean of means, a token of a short answer would weigh more than one of a long answer.
# </details>
#
# 2. The held-out loss rises while the training loss falls. What happened, and why not here?
# <details><summary>Answer</summary>
# Overfitting: the model learns examples by heart. Here most examples are seen at most once.
# </details>
#
# 3. Why a checksum, when `requires_grad` is already False?
# <details><summary>Answer</summary>
# An optimiser step is not the only way to change a weight: loading a file, a shared tensor, an in-place operation.
# </details>
