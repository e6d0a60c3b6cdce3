# %% [markdown]
# # 10 · One clipped step
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/10_one_clipped_step.ipynb)
#
# At the end you will know
#
# * the probability ratio, and why a sample may be used more than once;
# * what the clip of PPO stops, and what it does not stop;
# * that PPO with a KL penalty climbs to the closed-form optimum ρ\* of tutorial 01.
#
# Time: 30 minutes. You need: tutorials 01, 07a, 08 and 09.
#
# Builds on: [PPO (Schulman et al. 2017)](https://arxiv.org/abs/1707.06347).
#
# Open [pages/clip.html](pages/clip.html) in a browser to move the ratio and the clip.

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import torch
from lesson import BLUE, FAST, GREY, ORANGE, PINK, axes, check, show, source

from alignpro_mini import rl_math, theory

# %% [markdown]
# ## The ratio
#
# A *rollout* is a batch of sampled rewrites with their scores. It was sampled by the policy as it was, π_old. (π is what is
# trained, here the prompter.) Sampling is expensive, so one takes several optimiser steps with one rollout. After the first
# step the policy is another one, but the samples are still the old ones. The probability ratio puts this right:
#
# $$\mathrm{ratio} = \frac{\pi(\text{token})}{\pi_\mathrm{old}(\text{token})} \qquad E_\mathrm{old}[\mathrm{ratio} \cdot A] = \sum \pi_\mathrm{old} \frac{\pi}{\pi_\mathrm{old}} A = E_\pi[A]$$
#
# A is the advantage of tutorial 07a, E_old a mean over samples of π_old, E_π one over samples of π.
#
# At the first step the ratio is 1, and the gradient of ratio · A is A · ∇ln π: the policy gradient of
# tutorial 07a.
#
# ## The clip
#
# The mean is right, but a token with a large ratio counts as much as many others, and it is one sample. So PPO gives no credit
# beyond 1 ± ε. ε is the clip range, 0.2 here, and clip(ratio, 1 − ε, 1 + ε) cuts the ratio off at these two ends:
#
# $$\mathrm{loss} = -\min(\mathrm{ratio} \cdot A, \mathrm{clip}(\mathrm{ratio}, 1 - \epsilon, 1 + \epsilon) \cdot A)$$
#
# Of the two gains the smaller one counts. Three tokens by hand. The cell prints their losses, the package's function, and the
# gradient of the loss with respect to ln π:

# %%
ratio = torch.tensor([[1.5, 0.5, 1.5]])
advantage = torch.tensor([[1.0, 1.0, -1.0]])


def naive_loss(ratio, advantage, clip):
    return torch.tensor(
        [[-min(r * a, min(max(r, 1 - clip), 1 + clip) * a) for r, a in zip(ratio[0].tolist(), advantage[0].tolist())]]
    )


print("loss:", naive_loss(ratio, advantage, 0.2))
source(rl_math.policy_loss)
mask = torch.ones(1, 3, dtype=torch.bool)
logp = ratio.log().requires_grad_()
loss, seen = rl_math.policy_loss(logp, torch.zeros(1, 3), advantage, mask, 0.2)
torch.testing.assert_close(loss.detach(), naive_loss(ratio, advantage, 0.2))
loss.sum().backward()
print("gradient of the loss with respect to ln π:", logp.grad.tolist()[0], " clipped:", seen["clipped"].tolist()[0])

# %% [markdown]
# * Token 1 was good (A > 0) and already became 1.5 times as likely: no more credit, its gradient is 0.
# * Token 2 was good, but became *less* likely: the clip does not stop the way back.
# * Token 3 was bad (A < 0) and became *more* likely: this is wrong, so nothing is clipped and the loss grows.

# %%
assert logp.grad[0, 0] == 0 and logp.grad[0, 1] < 0 < logp.grad[0, 2]

# %% [markdown]
# ## PPO on a table
#
# Back to the six rewrites of tutorial 01. A rewrite is one token now, and the prompter is a row of six logits. The loop
# below has the steps of PPO: sample, score, advantages, a few clipped steps (`epochs`). There is no value head and there are
# no minibatches: the mean over the batch is the baseline. `whiten` scales the batch to mean 0 and variance 1. "k1 in the
# reward" is the KL penalty as a part of the reward (tutorial 08).

# %%
R = torch.tensor([0.6, 1.0, 1.0, 1.6, 0.1, 0.4])
rho_sft = torch.tensor([0.3, 0.14, 0.14, 0.14, 0.14, 0.14])
lam = 0.3
best = theory.optimal_prompter(rho_sft[None], R[None], lam)[0]


def train(clip=0.2, minimum=True, iterations=40 if FAST else 150, epochs=4, batch=256, lr=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = rho_sft.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr)
    objective = []
    for _ in range(iterations):
        old = logits.detach().log_softmax(0)
        taken = torch.multinomial(old.exp(), batch, replacement=True, generator=generator)
        score = R[taken] + 0.5 * torch.randn(batch, generator=generator)  # the LM's own sampling
        worth = score - lam * (old - rho_sft.log())[taken]  # k1 in the reward
        advantages = rl_math.whiten(worth[:, None], torch.ones(batch, 1, dtype=torch.bool))  # (batch, 1)
        for _ in range(epochs):
            new = logits.log_softmax(0)[taken][:, None]
            if minimum:
                loss, _ = rl_math.policy_loss(
                    new, old[taken][:, None], advantages, torch.ones(batch, 1, dtype=torch.bool), clip
                )
            else:
                loss = -(new - old[taken][:, None]).exp().clamp(1 - clip, 1 + clip) * advantages
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        rho = logits.detach().softmax(0)
        objective.append(float(theory.regularised_value(rho[None], rho_sft[None], R[None], lam)))
    return rho, objective


rho, objective = train()
top = float(theory.regularised_value(best[None], rho_sft[None], R[None], lam))
print("rewrite     1     2     3     4     5     6")
for name, row in (("ρ_sft", rho_sft), ("PPO", rho), ("ρ*", best)):
    print(f"{name:8}", "  ".join(f"{v:.2f}" for v in row.tolist()))
share = (objective[-1] - float(theory.value(rho_sft[None], R[None]))) / (
    top - float(theory.value(rho_sft[None], R[None]))
)
assert share > (0.6 if FAST else 0.97), share

# %% [markdown]
# PPO never saw R, only noisy scores of what it sampled. In this table each probability is within 0.01 of the exact optimum.
#
# ## A picture

# %%
figure, ((left, middle, right),) = axes(1, 3, (11.5, 3.3))
ratios = torch.linspace(0.4, 1.8, 141)
for ax, sign in ((left, 1.0), (middle, -1.0)):
    A = torch.full((1, 141), sign)
    curve, _ = rl_math.policy_loss(
        ratios.log()[None], torch.zeros(1, 141), A, torch.ones(1, 141, dtype=torch.bool), 0.2
    )
    ax.plot(ratios, curve[0], color=BLUE, label="PPO")
    ax.plot(ratios, -ratios * sign, color=GREY, linestyle="--", label="without a clip")
    ax.plot(ratios, -ratios.clamp(0.8, 1.2) * sign, color=PINK, linestyle=":", label="without the minimum")
    ax.axvline(1, color="black", linewidth=0.6)
    ax.set(xlabel="ratio", ylabel="loss of the token", title=f"A = {sign:+.0f}")
    ax.legend(frameon=False, fontsize=8)
right.plot(objective, color=BLUE, label="PPO")
right.axhline(top, color=ORANGE, label="ρ*")
right.set(xlabel="iteration", ylabel="J_λ", title="PPO on the table")
right.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# Left and middle: the curve is flat only where the step has already gone far in the *right* direction. The dotted line is the
# loss without the minimum: it is flat on both sides, so a token that moved the wrong way gets no gradient to come back. Where
# two lines lie on each other, only the upper one is seen. Right: J_λ of the prompter after each iteration.
#
# ## Drop the minimum, drop the clip
#
# Predict first: at learning rate 0.05, does PPO still reach ρ\* without the minimum (`minimum=False`)? Without any clip? And at
# learning rate 0.5, where ratios leave the clip?

# %%
ends = {}
for lr in (0.05, 0.5):
    for name, options in {"PPO": {}, "no minimum": {"minimum": False}, "no clip": {"clip": 1e9}}.items():
        ends[name, lr] = [train(lr=lr, seed=seed, **options)[1][-1] for seed in range(2 if FAST else 10)]
        mean = sum(ends[name, lr]) / len(ends[name, lr])
        print(f"lr {lr:4}, {name:10}: J_λ mean {mean:.4f}, worst seed {min(ends[name, lr]):.4f} (optimum {top:.4f})")

# %% [markdown]
# Ten seeds each. At 0.05 the three are alike: 1.1036 with the clip, 1.1037 without, 1.1036 without the minimum. In small steps no
# ratio gets far, so the clip hardly acts (tutorial 10a prints the ratios). At 0.5 the clip is needed: 1.0997 with it, 0.9504
# without, and the worst seed then ends at 0.4102, far below ρ_sft (J_λ = 0.754). Without the minimum it is 1.0846. This fits
# the picture: a token that moved the wrong way beyond the clip has no gradient to come back in the later passes. In the next
# rollout it has one, because every ratio begins at 1 there. Tutorial 10a asks when PPO is needed at all.
#
# ## Exercise ★★ (10 minutes): where is the gradient 0?
#
# Say for one token, from its ratio, its advantage and ε (`clip`), whether its loss has gradient 0. Return True or False. A is
# not 0. Think of both signs of A, and of a ratio below 1 − ε, above 1 + ε and between them.

# %% tags=["stub"]


def stopped(ratio, advantage, clip):
    return None  # your code


# %%
cases = [(r, a, 0.2) for r in (0.5, 0.9, 1.1, 1.5) for a in (1.0, -1.0)]
flat = []
for r, a, clip in cases:
    logp = torch.tensor([[r]]).log().requires_grad_()
    one = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = rl_math.policy_loss(logp, torch.zeros(1, 1), torch.tensor([[a]]), one, clip)
    flat.append(bool(torch.autograd.grad(loss.sum(), logp)[0] == 0))
check(stopped, flat, *cases)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def stopped(ratio, advantage, clip):
#     return ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
# ```
#
# Without the minimum it would be `abs(ratio - 1) > clip`, whatever the sign of A.
# </details>
#
# ## Questions
#
# 1. All advantages of a batch are multiplied by 10. What changes with whitening, and what without?
# <details><summary>Answer</summary>
# With whitening nothing. Without it the loss is 10 times as large; Adam divides most of that out again, but the value
# loss now weighs less beside it, and the limit on the gradient's length (max_grad_norm) shortens more steps.
# </details>
#
# 2. The clip fraction is 0.6. What does it mean, and what would you try?
# <details><summary>Answer</summary>
# More than half of the tokens have moved beyond 1 ± ε within one iteration: the step is too large. Lower the learning
# rate, or take fewer passes over each rollout.
# </details>
#
# 3. Does the clip keep ρ near ρ_sft?
# <details><summary>Answer</summary>
# No. It limits one iteration's move from π_old. Over many iterations ρ may go anywhere; only the KL penalty ties it to
# ρ_sft.
# </details>
