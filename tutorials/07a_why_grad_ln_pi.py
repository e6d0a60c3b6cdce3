# %% [markdown]
# # 07a · Why ∇ ln π?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/alignpro-mini/alignpro_mini/blob/main/tutorials/07a_why_grad_ln_pi.ipynb)
#
# At the end you will know
#
# * how to climb a reward that has no derivative: the policy gradient, derived on six rewrites;
# * REINFORCE, the oldest algorithm that does this;
# * what a baseline is, why it changes no mean, and how much variance it removes.
#
# Time: 45 minutes. You need: tutorial 01, the derivatives of exp and ln.
#
# Builds on: [REINFORCE (Williams 1992)](https://doi.org/10.1007/BF00992696).

# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q https://github.com/alignpro-mini/alignpro_mini /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials

# %%
import torch
from lesson import BLUE, FAST, GREY, ORANGE, axes, check, show, source

from alignpro_mini import rl_math
from alignpro_mini.variants import rloo

torch.set_default_dtype(torch.float64)  # so that "exact" means twelve digits

# %% [markdown]
# ## The gradient, if the table were known
#
# The six rewrites of tutorial 01: the frozen LM answers each of them in three ways, and an answer has a reward. The
# prompter is now something that can be trained: six numbers z, the *logits*, and ρ = softmax(z), so
# ln ρ_i = z_i − ln Σ_k exp(z_k). It starts at ρ_sft. (Books write π for what is trained, the *policy*. Here it is the prompter,
# ρ.)
#
# Training means: change z so that the mean reward J = Σ ρ_i R_i rises. First the derivatives of one probability, then that of
# J. The derivative of ln Σ_k exp(z_k) with respect to z_j is exp(z_j) / Σ_k exp(z_k) = ρ_j:
#
# $$\frac{\partial \ln \rho_i}{\partial z_j} = 1[i = j] - \rho_j \qquad (1[i = j] \text{ is 1 if } i = j \text{, else 0})$$
#
# $$\frac{\partial \rho_i}{\partial z_j} = \rho_i (1[i = j] - \rho_j) \qquad (\text{because } \partial \ln \rho = \partial \rho / \rho)$$
#
# $$\frac{\partial J}{\partial z_j} = \sum_i R_i \thinspace \rho_i (1[i = j] - \rho_j) = R_j \rho_j - \rho_j \sum_i R_i \rho_i = \rho_j (R_j - J)$$
#
# In words: a rewrite that is better than the mean gets a larger logit.

# %%
rewrites = ["(as it is)", "Be kind.", "Give every detail.", "Be a friendly guide.", "Keep it short.", "Be frank."]
frozen_lm = torch.tensor(  # one row a rewrite, one column an answer: curt, complete, complete and kind
    [[0.5, 0.4, 0.1], [0.4, 0.2, 0.4], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.9, 0.1, 0.0], [0.6, 0.4, 0.0]]
)
reward = torch.tensor([0.0, 1.0, 2.0])
rho = torch.tensor([0.3, 0.14, 0.14, 0.14, 0.14, 0.14])
R = frozen_lm @ reward  # (6,)
J = float(rho @ R)
exact = rho * (R - J)  # (6,)

z = rho.log().requires_grad_()
(z.softmax(0) @ R).backward()
torch.testing.assert_close(z.grad, exact)  # PyTorch agrees with the formula
print(f"J = {J:.3f}")
for text, p, value, slope in zip(rewrites, rho, R, exact):
    print(f"{text:22} ρ = {p:.2f}   R = {value:.1f}   ∂J/∂z = {slope:+.4f}")

# %% [markdown]
# This needs R of *every* rewrite. A real rewrite is a sequence of *tokens* (words or parts of words). 20 tokens from a
# vocabulary of 640 make 640²⁰ rewrites: nobody has this table. What can be had are samples. The prompter draws a rewrite x′,
# the LM draws an answer y, and y has a reward r. But a reward has no derivative with respect to z: what is drawn is an
# integer, the number of a rewrite, and y comes out of another program. PyTorch says so:

# %%
draw = torch.Generator().manual_seed(0)
taken = torch.multinomial(z.softmax(0).detach(), 8, replacement=True, generator=draw)  # (8,) rewrites
answered = torch.multinomial(frozen_lm[taken], 1, generator=draw)[:, 0]  # (8,) an answer to each
try:
    reward[answered].mean().backward()
except RuntimeError as error:
    print("RuntimeError:", str(error).split(" and ")[0])

# %% [markdown]
# ## The trick
#
# Read ∂ ln ρ = ∂ρ / ρ the other way round: ∇ρ = ρ ∇ln ρ. (∇ is the vector of the six derivatives.) So
#
# $$\nabla J = \sum R(x') \nabla \rho(x') = \sum \rho(x') R(x') \nabla \ln \rho(x') = E[R(x') \nabla \ln \rho(x')] = E[r(x, y) \nabla \ln \rho(x')]$$
#
# E is the expectation: x′ is drawn by the prompter, and in the last form y by the LM. The sum over all rewrites has become a
# *mean over what the prompter writes*, and a mean can be estimated from samples. The last step holds because R is the mean of
# r over the answers to x′: one answer is enough. Nobody differentiates the reward or the LM. That is why the LM may be frozen,
# and even behind an API (on another computer, where one can only send text).
#
# By the first line of derivatives, ∇ln ρ raises the logit of the rewrite that was drawn, and lowers all in proportion to
# their probability. REINFORCE (Williams, 1992) is: draw, get a reward, and go a step along r ∇ln ρ.

# %%


def naive_reinforce(taken, answered, rho, baseline=0.0):
    gradient = torch.zeros(6)
    for x_prime, y in zip(taken.tolist(), answered.tolist()):
        grad_ln_rho = -rho.clone()
        grad_ln_rho[x_prime] += 1
        gradient += (reward[y] - baseline) * grad_ln_rho / len(taken)
    return gradient


print("from 8 samples:", " ".join(f"{value:+.4f}" for value in naive_reinforce(taken, answered, rho).tolist()))
print("exact         :", " ".join(f"{value:+.4f}" for value in exact.tolist()))

# %% [markdown]
# An optimiser of PyTorch makes a *loss* smaller, so the sign is turned: the loss −mean(r · ln ρ(x′)) has the gradient above,
# with a minus. The package writes r · ρ/ρ_old in the place of r · ln ρ, where ρ_old is the value of ρ as a constant: its
# gradient is r ∇ρ/ρ = r ∇ln ρ. Tutorial 10 explains what the ratio and its `clip` are for. At ratio 1 the clip does nothing.

# %%
one = torch.ones(8, 1, dtype=torch.bool)
log_rho = z.log_softmax(0)[taken][:, None]  # (8, 1): a rewrite is one token here
for loss in (
    -(reward[answered] * log_rho[:, 0]),
    rl_math.policy_loss(log_rho, log_rho.detach(), reward[answered][:, None], one, clip=0.2)[0],
):
    (gradient,) = torch.autograd.grad(-loss.mean(), z, retain_graph=True)
    torch.testing.assert_close(gradient, naive_reinforce(taken, answered, rho))

# %% [markdown]
# ## Noise, and a question
#
# The estimate is right on average and far off in each sample. How far? The table is small, so the mean and the variance
# of an estimate from *one* sample can be computed exactly, over all 6 · 3 pairs of rewrite and answer. An estimate has six
# entries; "its variance" is the sum of their six variances.
#
# Predict before you go on: somebody adds 10 to the reward of every answer. Nothing about the rewrites has changed. What
# happens to the mean of the estimate, and what to its variance?

# %%
q = (rho[:, None] * frozen_lm).flatten()  # (18,) probability of a rewrite and an answer
r = reward.repeat(6)  # (18,)
grad_ln_rho = (torch.eye(6) - rho).repeat_interleave(3, 0)  # (18, 6)


def mean_and_variance(advantage):
    """Of the estimate advantage · ∇ln ρ: mean (6,), variance summed over the six logits."""
    estimate = advantage[:, None] * grad_ln_rho  # (18, 6)
    mean = q @ estimate
    return mean, float(q @ ((estimate - mean) ** 2).sum(1))


drawn = torch.multinomial(q, 100_000, replacement=True, generator=draw)
print("multiplied with ∇ln ρ   error of the mean   variance   measured with 100,000 samples")
table = {"r": r, "r + 10": r + 10, "r − J": r - J, "(r + 10) − (J + 10)": (r + 10) - (J + 10)}
for name, advantage in table.items():
    mean, variance = mean_and_variance(advantage)
    measured = (advantage[:, None] * grad_ln_rho)[drawn].var(0).sum()
    print(f"{name:21} {(mean - exact).abs().max():19.6f}   {variance:8.3f}   {measured:8.3f}")
    assert (mean - exact).abs().max() < 1e-12 and abs(measured / variance - 1) < 0.03

# %% [markdown]
# The mean stays, and the variance becomes 101 times as large. Every drawn rewrite is now "good" and is pushed up by
# about 10, whatever it earned; only the mean over very many samples cancels these pushes.
#
# ## The baseline
#
# The third row subtracts a number b from the reward, a *baseline*. The difference r − b is called the *advantage*. Why is
# the mean still right? Because b drops out, for every b that does not depend on the drawn rewrite or its answer:
#
# $$E[b \nabla \ln \rho] = b \sum \rho \nabla \ln \rho = b \sum \nabla \rho = b \nabla \sum \rho = b \nabla 1 = 0$$
#
# J is not known either, so b is the mean of other rewards of the batch. *Other* matters: with n rewards the mean of all
# of them holds a share 1/n of the drawn one, and the gradient comes out too short, by the factor (n − 1)/n. The package
# leaves the own one out.

# %%


def naive_leave_one_out(rewards):
    n = len(rewards)
    return [rewards[i] - sum(rewards[j] for j in range(n) if j != i) / (n - 1) for i in range(n)]


source(rloo)
torch.testing.assert_close(rloo(reward[answered][None])[0], torch.tensor(naive_leave_one_out(reward[answered])))
# All 18 · 18 batches of two samples: the gradient of the first sample, with the second one as baseline, or the mean of both.
pair = q[:, None] * q
other = (pair * (r[:, None] - r)).sum(1) @ grad_ln_rho
both = (pair * (r[:, None] - (r[:, None] + r) / 2)).sum(1) @ grad_ln_rho
torch.testing.assert_close(other, exact)
torch.testing.assert_close(both, exact / 2)

# %% [markdown]
# ## Does it matter?
#
# Plain gradient ascent, 8 rewrites a step, 20 seeds: with and without a baseline, for r and for r + 10.

# %%


def train(shift, baseline, seed, steps=30 if FAST else 300, batch=8, lr=0.5):
    generator = torch.Generator().manual_seed(seed)
    logits, curve = rho.log(), []
    for _ in range(steps):
        now = logits.softmax(0)
        taken = torch.multinomial(now, batch, replacement=True, generator=generator)
        answered = torch.multinomial(frozen_lm[taken], 1, generator=generator)[:, 0]
        earned = reward[answered] + shift
        advantage = rloo(earned[None])[0] if baseline else earned
        logits = logits + lr * (advantage[:, None] * (torch.eye(6)[taken] - now)).mean(0)
        curve.append(float(logits.softmax(0) @ R))
    return curve


figure, ((left, right),) = axes(1, 2, (9.5, 3.4))
bs = torch.linspace(-1, 3, 81)
left.plot(bs, [mean_and_variance(r - b)[1] for b in bs], color=BLUE)
left.axvline(J, color=GREY, linestyle="--", label="b = J")
left.set(xlabel="baseline b", ylabel="variance of one estimate", ylim=(0, None))
left.legend(frameon=False, fontsize=8)
ends = {}
arms = [(0, False, ORANGE, "-"), (10, False, ORANGE, ":"), (0, True, BLUE, "-"), (10, True, GREY, ":")]
for shift, baseline, colour, style in arms:
    curves = torch.tensor([train(shift, baseline, seed) for seed in range(3 if FAST else 20)])
    name = f"{'r + 10' if shift else 'r'}, {'with' if baseline else 'without'} a baseline"
    ends[shift, baseline] = curves[:, -1]
    right.plot(curves.mean(0), color=colour, linestyle=style, label=name)
    print(f"{name:26} J at the end: mean {curves[:, -1].mean():.3f}, worst seed {curves[:, -1].min():.3f}")
right.set(xlabel="step", ylabel="J, mean of the seeds", ylim=(0.5, 1.7))
right.legend(frameon=False, fontsize=7)
show(figure)
torch.testing.assert_close(ends[10, True], ends[0, True])
assert FAST or ends[0, True].min() > 1.58 and ends[10, False].mean() < 1.2

# %% [markdown]
# Left: the variance is a parabola in b. Right: with a baseline the curves of r and of r + 10 are one, because it takes the 10
# off again (so the grey dots cover the blue line). Without one, r + 10 hardly learns: the mean ends at 1.044, and the worst
# seed at 0.103, almost always on "Keep it short." (R = 0.1), the worst rewrite. For r itself the baseline halves the variance
# (0.454 against 0.938), but at the end it gains little (1.594 against 1.593): 300 steps are enough for both. Without a
# baseline b is 0, and here 0 is near J = 0.754. A learned reward can have any zero point (tutorial 06 shows why), so do not
# rely on that.
#
# ## Exercise ★★ (15 minutes): the best baseline
#
# J is a good baseline. Is it the best constant? Write the variance as a function of b, set its derivative to 0, and solve
# for b. Return this b, one number, computed from `q` (18 probabilities), `r` (18 rewards) and `grad_ln_rho` (18 rows of six).
# |∇ln ρ|² is the sum of the squares of a row.

# %% tags=["stub"]


def best_baseline(q, r, grad_ln_rho):
    return None  # your code


# %%
check(best_baseline, [0.7722], (q, r, grad_ln_rho), within=1e-4)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The mean does not depend on b, so only E[(r − b)² |∇ln ρ|²] counts. Its derivative is −2 E[(r − b) |∇ln ρ|²]. It is 0 at
# b = E[r |∇ln ρ|²] / E[|∇ln ρ|²]: a mean of r in which a rewrite with a long ∇ln ρ weighs more.
#
# ```python
# def best_baseline(q, r, grad_ln_rho):
#     weight = q * (grad_ln_rho**2).sum(1)
#     return weight @ r / weight.sum()
# ```
#
# It gives 0.7722 and the variance 0.4538. With b = J = 0.754 the variance is 0.4541: here the mean is as good.
# </details>
#
# ## Questions
#
# 1. May a baseline depend on the request x? On the drawn rewrite x′?
# <details><summary>Answer</summary>
# On x, yes: given x it is a constant. That is what a critic V(x) is. On x′, no: with b = R(x′) the mean of
# (r − b) ∇ln ρ is 0, and nothing is learned.
# </details>
#
# 2. The KL penalty −λ ln(ρ/ρ_sft) depends on z itself. Why may it be a part of the reward, as a plain number?
# <details><summary>Answer</summary>
# The product rule gives a second term, −λ Σ ρ ∇ln ρ = −λ ∇ Σ ρ = 0: the same proof as for the baseline. Tutorial 08 goes on.
# </details>
#
# 3. A rewrite has 20 tokens and one reward. What is ∇ln ρ(x′|x)?
# <details><summary>Answer</summary>
# ln ρ is the sum of the tokens' log-probabilities, so it is the sum of their gradients. All get the same reward, also those
# that did not matter. Tutorial 09 is about that.
# </details>
