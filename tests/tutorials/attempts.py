"""What students hand in: right functions that are written differently, and wrong ones that a careless check lets pass.

RIGHT   {name: (function, its text)}
WRONG   {name: (function, a piece of its module, what stands there instead)}; a piece of None: the text of the function

Those that need one line are in RIGHT_LINES and WRONG_LINES.
"""

from __future__ import annotations

import cut

ATTEND = """\
def attend(self, q, k, v, allowed):
    H, G, E = q.shape[1], k.shape[1], q.shape[3]
    k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
    scores = q @ k.transpose(-1, -2) / E**0.5
    if allowed is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v
"""
GAE = """\
def gae(rewards, values, mask, gamma, lam):
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError("shapes")
    advantages = torch.zeros(mask.shape)  # float32
    for b in range(len(mask)):
        later, following = 0.0, 0.0
        for t in reversed(range(int(mask[b].sum()))):
            later = rewards[b, t] + gamma * following - values[b, t] + gamma * lam * later
            advantages[b, t], following = later, values[b, t]
    return advantages, torch.where(mask, advantages + values, 0.0)
"""

SHARE = """\
def request_share(pro, fixed, star, count, groups=None):
    n = len(star)
    means = [rewards[:n].reshape(n, -1).mean(1) for rewards in (pro, fixed, star)]
    drawn = [x[np.random.default_rng(0).integers(n, size=(count, n))].mean(1) for i, x in enumerate(means)]
    found = {"request_share": None, "request_share_ci95": None}
    if np.quantile(drawn[2] - drawn[1], 0.025) > 0:
        found["request_share"] = (means[0].mean() - means[1].mean()) / (means[2].mean() - means[1].mean())
        shares = (drawn[0] - drawn[1]) / (drawn[2] - drawn[1])
        found["request_share_ci95"] = [np.quantile(shares, 0.025), np.quantile(shares, 0.975)]
    return found
"""

RIGHT = {
    "a share with draws of one's own": ("lab.evaluation.request_share", SHARE),
    # three that lost points once
    "a softmax in float32": (
        "transformer.Attention.attend",
        ATTEND.replace("scores.softmax(-1)", "scores.float().softmax(-1).to(v.dtype)"),
    ),
    "rewards in float32": (
        "rl_math.assemble_rewards",
        """\
def assemble_rewards(scores, kl, mask, lam):
    if mask.shape != kl.shape or scores.shape != mask.shape[:1] or not mask.any(1).all():
        raise ValueError
    rows = []
    for score, ratios, real in zip(scores.tolist(), kl.tolist(), mask.tolist()):
        row = [-lam * k if is_real else 0.0 for k, is_real in zip(ratios, real)]
        row[sum(real) - 1] += score
        rows.append(row)
    return torch.tensor(rows)
""",
    ),
    # ten more
    "an advantage in float32": ("rl_math.gae", GAE),
    "the variance of what the mask selects": (
        "rl_math.masked_var",
        "def masked_var(x, mask):\n    _same_shape(x=x, mask=mask)\n    return x[mask].var(unbiased=False)\n",
    ),
    "k3 by exp": (
        "rl_math.kl_estimate",
        """\
def kl_estimate(logp, logp_ref, kind="k1"):
    if logp.shape != logp_ref.shape:
        raise ValueError("shapes")
    d = logp - logp_ref
    if kind not in ("k1", "k2", "k3"):
        raise ValueError("another kind")
    return {"k1": d, "k2": 0.5 * d.square(), "k3": torch.exp(-d) - 1 + d}[kind]
""",
    ),
    "entropy of the possible tokens": (
        "rl_math.entropy",
        """\
def entropy(logits):
    p = logits.softmax(-1)
    return -(p * torch.where(p == 0, 1.0, p).log()).sum(-1)
""",
    ),
    "pairs turned by cosine and sine": (
        "transformer.rotate",
        """\
def rotate(x, rope):
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((a * rope.real - b * rope.imag, a * rope.imag + b * rope.real), -1)
    return turned.flatten(-2).to(x.dtype)
""",
    ),
    "a draw by loops": (
        "generation.draw",
        """\
def draw(logp, uniform):
    found = []
    for row, u in zip(logp.double().exp().tolist(), uniform.double().tolist()):
        total, below = sum(row), 0.0
        last = max(v for v in range(len(row)) if row[v] > 0)
        for v, p in enumerate(row):
            below += p
            if below > u * total or v == last:
                break
        found.append(v)
    return torch.tensor(found)
""",
    ),
    "prompts in the order of their first pair": (
        "reward.split_by_prompt",
        """\
def split_by_prompt(pairs, share, generator):
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs if not pair.mismatched))
    order = torch.randperm(len(prompts), generator=generator).tolist()
    out = [prompts[i] for i in order[: max(1, int(share * len(prompts) + 0.5))]]
    train = [pair for pair in pairs if pair.prompt not in out]
    return train, [pair for pair in pairs if pair.prompt in out and not pair.mismatched]
""",
    ),
    "labels one by one": (
        "reward.draw_preferences",
        """\
def draw_preferences(prompts, first, second, gold, scale, generator, mismatched=False):
    found = []
    draws = torch.rand(len(prompts), generator=generator).tolist()
    for x, a, b, ra, rb, u in zip(prompts, first, second, gold(prompts, first), gold(prompts, second), draws):
        p = float(torch.sigmoid(torch.tensor(scale * (ra - rb), dtype=torch.float64)))
        found.append(Preference(x, a, b, p, mismatched) if u < p else Preference(x, b, a, 1 - p, mismatched))
    return found
""",
    ),
    "values limited by minimum and maximum": (
        "rl_math.value_loss",
        """\
def value_loss(values, values_old, returns, mask, clip):
    _same_shape(values=values, values_old=values_old, returns=returns, mask=mask)
    zero = torch.zeros_like(values)
    v, old, r = (torch.where(mask, x, zero) for x in (values, values_old, returns))
    plain = (v - r) ** 2
    limited = (torch.minimum(torch.maximum(v, old - clip), old + clip) - r) ** 2
    return torch.max(plain, limited) / 2, (limited > plain) & mask
""",
    ),
    "scores as a list": (
        "ppo.PPOTrainer.scores",
        """\
def scores(self, rollout):
    found = torch.as_tensor(self.score(rollout.prompts, rollout.completions))
    if list(found.shape) != [len(rollout.prompts)]:
        raise UserError("one score per completion")
    numbers = [float(x) for x in found]
    if any(x != x or abs(x) == float("inf") for x in numbers):
        raise FloatingPointError("not finite")
    return torch.tensor(numbers, dtype=rollout.logp.dtype)
""",
    ),
    "one hash of everything": (
        "frozen.checksum",
        """\
def checksum(model):
    parts = []
    for name, x in sorted(model.state_dict().items()):
        x = x.detach().cpu().contiguous()
        parts.append(repr((name, str(x.dtype), list(x.shape))).encode())
        parts.append(bytes(x.reshape(-1).view(torch.uint8).tolist()))
    return hashlib.sha256(b"".join(parts)).hexdigest()
""",
    ),
    "resamples by choice": (
        "lab.statistics.bootstrap_interval",
        """\
def bootstrap_interval(per_input, resamples, groups=None):
    rng = np.random.default_rng(1)
    means = sorted(rng.choice(per_input, len(per_input)).mean() for _ in range(resamples))
    return [float(x) for x in np.quantile(means, [0.025, 0.975])]
""",
    ),
}

MEAN, KEPT = "rl_math.masked_mean", "kept = torch.where(mask, x, 0.0)"
VAR = "return masked_mean((x - mean) ** 2, mask)"
LOGP, LOGS = "generation.sampling_logprobs", "return logits.log_softmax(-1)"
ASSEMBLE, PENALTY = "rl_math.assemble_rewards", "rewards = torch.where(mask, -lam * kl, 0.0)"
DELTA = "delta = rewards + gamma * next_value - values"
RATIO = "ratio = log_ratio.exp()"
BAG = "if checksum(self.model) != self._checksum:"
SCORED = "self.r = r.view("
TABLE_KL = "return (p * log_ratio).sum(-1)"
OPTIMUM = "return _log_optimum(rho_sft, R, lam).exp()"
J_LAM = "return (rho * R).sum(-1).mean() - lam * _kl_logs(rho, rho_sft.log()).mean()"

WRONG = {
    # ---- a1. NaN that is hidden
    "mean: nan_to_num": (MEAN, KEPT, "kept = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) * mask"),
    "sum: nan_to_num": (
        "rl_math.masked_sum",
        "torch.where(mask, x, 0.0).sum(-1)",
        "(torch.nan_to_num(x, 0.0, 0.0, 0.0) * mask).sum(-1)",
    ),
    "variance: nan_to_num": (
        "rl_math.masked_var",
        VAR,
        "return masked_mean((torch.nan_to_num(x) - torch.nan_to_num(mean)) ** 2, mask)",
    ),
    "whiten: nan_to_num": (
        "rl_math.whiten",
        "torch.where(mask, white if shift_mean else white + mean, 0.0)",
        "torch.where(mask, torch.nan_to_num(white if shift_mean else white + mean), 0.0)",
    ),
    "KL: nan_to_num": (
        "rl_math.exact_kl",
        "(logp.exp() * log_ratio).sum(-1)",
        "torch.nan_to_num(logp.exp() * log_ratio).sum(-1)",
    ),
    "entropy: nan_to_num": (
        "rl_math.entropy",
        "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)",
        "-torch.nan_to_num(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)",
    ),
    # digits that are lost
    "variance: E[x²] - E[x]²": ("rl_math.masked_var", VAR, "return masked_mean(x**2, mask) - mean**2"),
    "whiten: E[x²] - E[x]²": ("rl_math.whiten", "var = masked_var(x, mask)", "var = masked_mean(x**2, mask) - mean**2"),
    # clamps and epsilons
    "mean: clamped": (MEAN, KEPT, "kept = torch.where(mask, x.clamp(-20, 20), 0.0)"),
    "sum: clamped": (
        "rl_math.masked_sum",
        "torch.where(mask, x, 0.0).sum(-1)",
        "torch.where(mask, x.clamp(-100, 100), 0.0).sum(-1)",
    ),
    "k1: clamped": ("rl_math.kl_estimate", "d = logp - logp_ref", "d = (logp - logp_ref).clamp(-20, 20)"),
    "k3: clamped": ("rl_math.kl_estimate", "return torch.expm1(-d) + d", "return (torch.expm1(-d) + d).clamp(max=10)"),
    "KL: log ratio clamped": ("rl_math.exact_kl", "* log_ratio).sum(-1)", "* log_ratio.clamp(-20, 20)).sum(-1)"),
    "KL: epsilon in the log": (
        "rl_math.exact_kl",
        "logq = logits_ref.log_softmax(-1)",
        "logq = (logits_ref.softmax(-1) + 1e-12).log()",
    ),
    "entropy: epsilon in the log": (
        "rl_math.entropy",
        "logp = logits.log_softmax(-1)",
        "logp = (logits.softmax(-1) + 1e-6).log()",
    ),
    "whiten: clamped": (
        "rl_math.whiten",
        "white = (x - mean) * torch.rsqrt(var + eps)",
        "white = ((x - mean) * torch.rsqrt(var + eps)).clamp(-5, 5)",
    ),
    # ---- a2
    "attend: -1e4 for -inf": ("transformer.Attention.attend", None, ATTEND.replace('float("-inf")', "-1e4")),
    "attend: scores clamped": (
        "transformer.Attention.attend",
        None,
        ATTEND.replace("scores.softmax", "scores.clamp(-50, 50).masked_fill(~allowed, float('-inf')).softmax"),
    ),
    "attend: nan_to_num": (
        "transformer.Attention.attend",
        None,
        ATTEND.replace("scores.softmax(-1) @ v", "torch.nan_to_num(scores.softmax(-1) @ v)"),
    ),
    "attend: no maximum taken away": (
        "transformer.Attention.attend",
        None,
        ATTEND.replace("scores.softmax(-1)", "(scores.exp() / scores.exp().sum(-1, keepdim=True))"),
    ),
    "attend: q scaled in place": (
        "transformer.Attention.attend",
        None,
        ATTEND.replace("q @ k.transpose(-1, -2) / E**0.5", "q.mul_(E**-0.5) @ k.transpose(-1, -2)"),
    ),
    "rotate: bfloat16": ("transformer.rotate", "x.float().unflatten", "x.bfloat16().float().unflatten"),
    "positions: one byte": (
        "transformer.Transformer._positions",
        ".cumsum(1)",
        ".to(torch.uint8).cumsum(1, dtype=torch.uint8).long()",
    ),
    "append: the slots after the new ones are cleared": (
        "transformer.KVCache.append",
        "        return self.k[layer",
        "        self.k[layer, :, :, end:] = 0\n        return self.k[layer",
    ),
    "forward: x normed in place": (
        "transformer.Attention.forward",
        "B, T, D = x.shape",
        "B, T, D = x.shape; x += 1e-3",
    ),
    # ---- a3
    "log-probs: a least temperature": (
        LOGP,
        "logits = logits / temperature",
        "logits = logits / max(temperature, 0.1)",
    ),
    "log-probs: epsilon in the log": (LOGP, LOGS, "return (logits.softmax(-1) + 1e-12).log()"),
    "log-probs: clamped": (
        LOGP,
        LOGS,
        "return torch.where(logits == -torch.inf, -torch.inf, logits.log_softmax(-1).clamp(min=-20))",
    ),
    "log-probs: the log of a softmax": (LOGP, LOGS, "return logits.softmax(-1).log()"),
    "log-probs: nan_to_num": (
        LOGP,
        "logits = logits.float()",
        "logits = torch.nan_to_num(logits.float(), neginf=-torch.inf, posinf=torch.inf)",
    ),
    "draw: u kept below 0.999": ("generation.draw", "1 - 2**-20", "0.999"),
    "generate: prompts grow": (
        "generation.generate",
        "    ended = [",
        "    for prompt, new in zip(prompts, tokens):\n        prompt.extend(new)\n    ended = [",
    ),
    "generate: seeds the global generator": (
        "generation.generate",
        "    check_prompts(model, prompts, max_new_tokens, max_batch)",
        "    check_prompts(model, prompts, max_new_tokens, max_batch)\n    torch.manual_seed(0)",
    ),
    "pad: ids of 16 bits": (
        "generation._pad",
        "ids = torch.tensor(padded, dtype=torch.long).view(mask.shape)",
        "ids = torch.tensor(padded, dtype=torch.long).to(torch.int16).long().view(mask.shape)",
    ),
    "pairs: prompts grow": (
        "generation.pad_pairs",
        "    ids, mask = pad_right([[*p, *c] for p, c in pairs], 0, device)",
        "    ids, mask = pad_right([[*p, *c] for p, c in pairs], 0, device)\n    [p.append(0) for p, _ in pairs if isinstance(p, list)]",
    ),
    "scorer: clamped": (
        "generation.sequence_logprobs",
        "sums[rows] = logp.sum(1).cpu()",
        "sums[rows] = logp.clamp(min=-20).sum(1).cpu()",
    ),
    # ---- a4
    "answer loss: logits clamped": ("sft.answer_loss", "logits.float()", "logits.float().clamp(-20, 20)"),
    "answer loss: padding ignored by its loss": (
        "sft.answer_loss",
        "return F.cross_entropy(logits.float(), ",
        "return F.cross_entropy(logits.float(), label_smoothing=1e-3, target=",
    ),
    "preferences: an epsilon in the log": (
        "rl_math.bradley_terry_loss",
        "-torch.nn.functional.logsigmoid(chosen - rejected)",
        "-(torch.sigmoid(chosen - rejected) + 1e-8).log()",
    ),
    "preferences: difference clamped": (
        "rl_math.bradley_terry_loss",
        "logsigmoid(chosen - rejected)",
        "logsigmoid((chosen - rejected).clamp(-20, 20))",
    ),
    "preferences: nan_to_num": (
        "rl_math.bradley_terry_loss",
        "-torch.nn.functional.logsigmoid(chosen - rejected)",
        "torch.nan_to_num(-torch.nn.functional.logsigmoid(chosen - rejected))",
    ),
    "reward: clamped": ("reward.RewardModel.forward", ".squeeze(-1).float()", ".squeeze(-1).float().clamp(-5, 5)"),
    "labels: certainty clamped": (
        "reward.draw_preferences",
        "p_first = torch.sigmoid(scale * difference.float())",
        "p_first = torch.sigmoid(scale * difference.float()).clamp(0.001, 0.999)",
    ),
    "split: a share rounded down": (
        "reward.split_by_prompt",
        "round(share * len(prompts))",
        "int(share * len(prompts))",
    ),
    "split: a share rounded up": (
        "reward.split_by_prompt",
        "round(share * len(prompts))",
        "-int(-share * len(prompts) // 1)",
    ),
    "accuracy: near ties": (
        "reward.accuracy",
        "(chosen > rejected).float() + 0.5 * (chosen == rejected).float()",
        "(chosen > rejected + 1e-3).float() + 0.5 * ((chosen - rejected).abs() <= 1e-3).float()",
    ),
    # ---- a5
    "rewards: KL clamped": (ASSEMBLE, PENALTY, "rewards = torch.where(mask, -lam * kl.clamp(-10, 10), 0.0)"),
    "rewards: KL not below 0": (ASSEMBLE, PENALTY, "rewards = torch.where(mask, -lam * kl.clamp(min=0), 0.0)"),
    "rewards: score clamped": (ASSEMBLE, "scores[:, None].to(", "scores[:, None].clamp(-5, 5).to("),
    "rewards: nan_to_num": (ASSEMBLE, PENALTY, "rewards = torch.where(mask, -lam * torch.nan_to_num(kl), 0.0)"),
    "rewards: lam at most 1": (ASSEMBLE, PENALTY, "rewards = torch.where(mask, -min(lam, 1.0) * kl, 0.0)"),
    "rewards: the KL summed at the end": (
        ASSEMBLE,
        PENALTY,
        "rewards = torch.zeros_like(kl); scores = scores - lam * torch.where(mask, kl, 0.0).sum(1)",
    ),
    "GAE: delta clamped": ("rl_math.gae", DELTA, "delta = (rewards + gamma * next_value - values).clamp(-10, 10)"),
    "GAE: nan_to_num": ("rl_math.gae", DELTA, "delta = torch.nan_to_num(rewards + gamma * next_value - values)"),
    "GAE: whitened": (
        "rl_math.gae",
        "    return advantages, advantages + values",
        "    return whiten(advantages, mask), advantages + values",
    ),
    # ---- a6
    "ratio: log clamped at 5": ("rl_math.policy_loss", RATIO, "ratio = log_ratio.clamp(-5, 5).exp()"),
    "ratio: log clamped at 20": ("rl_math.policy_loss", RATIO, "ratio = log_ratio.clamp(-20, 20).exp()"),
    "ratio: nan_to_num": ("rl_math.policy_loss", RATIO, "ratio = torch.nan_to_num(log_ratio).exp()"),
    "ratio: clamped between 0.1 and 10": ("rl_math.policy_loss", RATIO, "ratio = log_ratio.exp().clamp(0.1, 10)"),
    "value loss: error clamped": (
        "rl_math.value_loss",
        "plain_error = torch.where(mask, values - returns, 0.0) ** 2",
        "plain_error = torch.where(mask, (values - returns).clamp(-10, 10), 0.0) ** 2",
    ),
    "explained variance: an epsilon": (
        "rl_math.explained_variance",
        "masked_var(returns, mask).clamp(min=1e-8)",
        "(masked_var(returns, mask) + 1e-8)",
    ),
    "explained variance: at least -10": (
        "rl_math.explained_variance",
        None,
        "def explained_variance(values, returns, mask):\n    found = 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)\n    return found.clamp(min=-10)\n",
    ),
    "controller: a least coefficient": (
        "rl_math.adaptive_kl_coef",
        "return coef * (1 + error * steps / horizon)",
        "return max(coef * (1 + error * steps / horizon), 1e-3)",
    ),
    "controller: a largest coefficient": (
        "rl_math.adaptive_kl_coef",
        "return coef * (1 + error * steps / horizon)",
        "return min(coef * (1 + error * steps / horizon), 20.0)",
    ),
    "scores: clamped": ("ppo.PPOTrainer.scores", "        return scores\n", "        return scores.clamp(-100, 100)\n"),
    "trainer's rewards: KL clamped": (
        "ppo.PPOTrainer.assemble_rewards",
        'rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")',
        'rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1").clamp(-5, 5)',
    ),
    "advantages: clamped": (
        "ppo.PPOTrainer.estimate_advantages",
        "rl_math.whiten(advantages, mask) if",
        "rl_math.whiten(advantages, mask).clamp(-2, 2) if",
    ),
    "loss: the old policy is the new one": (
        "ppo.PPOTrainer.loss",
        "new, old = self.ratio_logprobs(logp, part)",
        "new, old = logp, logp.detach()",
    ),
    "loss: another variant's ratio is not asked for": (
        "ppo.PPOTrainer.loss",
        "new, old = self.ratio_logprobs(logp, part)",
        "new, old = logp, part.logp",
    ),
    "loss: an option of another trainer": (
        "ppo.PPOTrainer.extra_loss",
        "return self.config.vf_coef * loss.sum(), logged",
        "return self.config.vf_coef * (loss.sum() if self.config.whiten_advantages else loss.mean()), logged",
    ),
    "loss: log-probs clamped": (
        "ppo.PPOTrainer.loss",
        ".gather(1, taken)[:, 0]  # (n,)",
        ".gather(1, taken)[:, 0].clamp(min=-5)",
    ),
    "states: the model in training mode": (
        "rollout.Policy.states",
        None,
        "def states(self, lm, features, mask, T):\n    lm.train()\n    frozen = frozen_blocks(lm, self.train_layers)\n    return lm.hidden(features, mask, start=frozen)[:, -T - 1 : -1]\n",
    ),
    # ---- a7
    "frozen: frozen again, silently": (
        "frozen.FrozenLM.assert_unchanged",
        "        if any(p.requires_grad for p in self.model.parameters()):",
        "        bad = any(p.requires_grad for p in self.model.parameters())\n        self.model.requires_grad_(False)\n        if bad:",
    ),
    "frozen: put in training mode": ("frozen.FrozenLM.assert_unchanged", BAG, "self.model.train()\n        " + BAG),
    "frozen: only large changes": (
        "frozen.FrozenLM.assert_unchanged",
        BAG,
        "if checksum(self.model.half()) != self._checksum and checksum(self.model) != self._checksum:",
    ),
    "checksum: nan_to_num": (
        "frozen.checksum",
        "tensor.detach().cpu()",
        "(torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor).detach().cpu()",
    ),
    "checksum: gradients forgotten": (
        "frozen.checksum",
        "    digest = hashlib.sha256()",
        "    digest = hashlib.sha256()\n    model.zero_grad()",
    ),
    "usable: the list is changed": (
        "alignpro.usable_rewrites",
        "    return sent, sum(a != b for a, b in zip(sent, rewrites))",
        "    count = sum(a != b for a, b in zip(sent, rewrites))\n    if isinstance(rewrites, list):\n        rewrites[:] = sent\n    return sent, count",
    ),
    "score: nan_to_num": ("alignpro.PromptScore.__call__", SCORED, "r = torch.nan_to_num(r)\n        self.r = r.view("),
    "score: clamped": ("alignpro.PromptScore.__call__", SCORED, "r = r.clamp(-10000, 10000)\n        self.r = r.view("),
    # ---- a8
    "table KL: an epsilon beside p": (
        "theory.kl",
        "return _kl_logs(p, q.log())",
        "return torch.where(p > 0, p * ((p + 1e-12).log() - q.log()), 0.0).sum(-1)",
    ),
    "table KL: NaN gradient": (
        "theory.kl",
        "return _kl_logs(p, q.log())",
        "return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)",
    ),
    "table KL: nan_to_num": (
        "theory.kl",
        "return _kl_logs(p, q.log())",
        "return torch.nan_to_num(p * (p / q).log(), nan=0.0, posinf=torch.inf).sum(-1)",
    ),
    "optimum: epsilon in the log": (
        "theory.optimal_prompter",
        OPTIMUM,
        "return ((rho_sft + 1e-12).log() + R / lam).softmax(-1)",
    ),
    "optimum: the largest of all rewrites": (
        "theory.optimal_prompter",
        OPTIMUM,
        "z = rho_sft * ((R - R.max(1, keepdim=True).values) / lam).exp(); return z / z.sum(1, keepdim=True)",
    ),
    "optimum: a least lam": (
        "theory.optimal_prompter",
        OPTIMUM,
        "return _log_optimum(rho_sft, R, max(lam, 0.01)).exp()",
    ),
    "optimum: a largest lam": (
        "theory.optimal_prompter",
        OPTIMUM,
        "return _log_optimum(rho_sft, R, min(lam, 10.0)).exp()",
    ),
    "optimum: rewards clamped": (
        "theory.optimal_prompter",
        OPTIMUM,
        "return _log_optimum(rho_sft, R.clamp(-2000, 2000), lam).exp()",
    ),
    "objective: a largest lam": ("theory.regularised_value", J_LAM, J_LAM.replace("lam *", "min(lam, 2.0) *")),
    "objective: a least lam": ("theory.regularised_value", J_LAM, J_LAM.replace("lam *", "max(lam, 0.05) *")),
    "objective: epsilon in the log": (
        "theory.regularised_value",
        J_LAM,
        J_LAM.replace("rho_sft.log()", "(rho_sft + 1e-10).log()"),
    ),
    "parts: E[x²] - E[x]²": (
        "lab.statistics.variance_parts",
        "((rewards - per_rewrite[:, :, None]) ** 2).sum()",
        "M * ((rewards**2).mean(2) - per_rewrite**2).sum()",
    ),
    "parts: float32": (
        "lab.statistics.variance_parts",
        "    per_rewrite = rewards.mean(2)",
        "    rewards = rewards.astype(np.float32)\n    per_rewrite = rewards.mean(2)",
    ),
    "interval: seeds NumPy's global generator": (
        "lab.statistics.bootstrap_interval",
        "    return interval(",
        "    np.random.seed(0)\n    return interval(",
    ),
    "wins: rounded": (
        "lab.statistics.win_shares",
        "tie = np.isclose(a, b, rtol=0, atol=1e-9)",
        "tie = np.round(a, 7) == np.round(b, 7)",
    ),
    "headroom: an epsilon in the ICC": (
        "lab.evaluation.headroom",
        'max(spread + parts["within"], 1e-12)',
        '(spread + parts["within"] + 1e-6)',
    ),
    "headroom: the evaluator shrinks": (
        "lab.evaluation.headroom",
        "    return parts | {",
        "    evaluator.requests[:] = few\n    return parts | {",
    ),
    "share: each arm with draws of its own": ("lab.evaluation.request_share", None, SHARE.replace("rng(0)", "rng(i)")),
    "share: an epsilon below the line": (
        "lab.evaluation.request_share",
        "(best - theirs).mean())",
        "((best - theirs).mean() + 1e-6))",
    ),
    "share: always told": (
        "lab.evaluation.request_share",
        "if bootstrap_interval(best - theirs, count, few)[0] <= 0:",
        "if (best == theirs).all():",
    ),
}


# One line each: the function, a piece of it, what stands there instead. First right ones.
RIGHT_LINES = """
rl_math.masked_mean: kept = torch.where(mask, x, 0.0) => kept = x.masked_fill(~mask, 0.0)
rl_math.masked_sum: torch.where(mask, x, 0.0).sum(-1) => torch.stack([row[real].sum() for row, real in zip(x, mask)])
rl_math.whiten: torch.rsqrt(var + eps) => 1 / (var + eps).sqrt()
rl_math.kl_estimate: d**2 / 2 => 0.5 * d * d
rl_math.exact_kl: (logp.exp() * log_ratio).sum(-1) => torch.einsum("...v,...v->...", logp.exp(), log_ratio)
rl_math.entropy: -(logp.exp() * logp => torch.zeros(logits.shape[:-1]) - (logits.softmax(-1) * logp
transformer.rotate: pairs * rope => pairs * (rope / rope.abs())
transformer.Transformer._positions: return (mask.cumsum(1) - 1).clamp(min=0) => return torch.relu(mask.long().cumsum(1) - 1)
transformer.Transformer._allowed: | (key == query) => | ((key == query) & ~real)
transformer.KVCache.append: self.k[layer, :, :, self.length : end] = k => self.k[layer].narrow(2, self.length, k.shape[2]).copy_(k)
transformer.Attention.forward: y.transpose(1, 2).reshape(B, T, H * E) => y.permute(0, 2, 1, 3).flatten(2)
transformer.Attention.forward: cache.append(layer, k, v) => cache.append(layer, k.clone(), v.clone())
generation.sampling_logprobs: return logits.log_softmax(-1) => return logits - logits.logsumexp(-1, keepdim=True)
generation.draw: torch.searchsorted(cdf, u, right=True)[:, 0] => (cdf <= u).sum(-1)
generation.generate: max_batch or 256 => max_batch or 64
generation._pad: if left else column < lengths => if left else ~(column >= lengths)
generation.pad_pairs: mask[:, : prompt.shape[1]] &= ~prompt => mask &= torch.arange(mask.shape[1], device=mask.device) >= prompt.sum(1, keepdim=True)
generation.sequence_logprobs: logp.sum(1).cpu() => torch.stack([row.sum() for row in logp]).cpu()
sft.answer_loss: F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]]) => -logits.float().log_softmax(-1).gather(1, ids[:, 1:][is_answer[:, 1:]][:, None]).mean()
rl_math.bradley_terry_loss: -torch.nn.functional.logsigmoid(chosen - rejected) => torch.nn.functional.softplus(rejected - chosen)
rl_math.bradley_terry_loss: -torch.nn.functional.logsigmoid(chosen - rejected) => torch.logaddexp(torch.zeros_like(chosen), rejected - chosen)
reward.RewardModel.forward: mask.sum(1) - 1 => mask.long().cumsum(1).argmax(1)
reward.RewardModel.forward: self.lm.hidden(features, start=frozen) => self.lm.hidden(features, mask, start=frozen)
reward.split_by_prompt: {prompts[i] for i in order[:count]} => [prompts[i] for i in order][:count]
reward.accuracy: (chosen > rejected).float() + 0.5 * (chosen == rejected).float() => torch.where(chosen == rejected, 0.5, (chosen > rejected).float())
rl_math.assemble_rewards: torch.where(mask, column, -1).amax(dim=1) => mask.sum(1) - 1
rl_math.gae: delta[:, t] + gamma * lam * running => torch.add(delta[:, t], running, alpha=gamma * lam)
rl_math.policy_loss: -torch.minimum(plain, limited) => torch.maximum(-plain, -limited)
rl_math.value_loss: torch.maximum(plain_error, limited_error) / 2 => 0.5 * torch.where(limited_error > plain_error, limited_error, plain_error)
rl_math.explained_variance: masked_var(returns - values, mask) => masked_var(values - returns, mask)
rl_math.adaptive_kl_coef: min(max(kl / target - 1, -0.2), 0.2) => sorted((-0.2, kl / target - 1, 0.2))[1]
rollout.Policy.states: [:, -T - 1 : -1] => [:, mask.shape[1] - T - 1 : mask.shape[1] - 1]
ppo.PPOTrainer.assemble_rewards: self.config.missing_eos_penalty * (~rollout.finished) => torch.where(rollout.finished, 0.0, self.config.missing_eos_penalty)
ppo.PPOTrainer.extra_loss: self.config.vf_coef * loss.sum() => (self.config.vf_coef * loss).sum()
ppo.PPOTrainer.loss: .gather(1, taken)[:, 0]  # => .take_along_dim(taken, 1).squeeze(1)  #
frozen.checksum: sorted(model.state_dict().items()) => sorted(model.state_dict().items(), reverse=True)
alignpro.usable_rewrites: x_prime.strip() and fits(x_prime) => len(x_prime.split()) and fits(x_prime)
alignpro.PromptScore.__call__: return self.r.mean(1) => return self.r.sum(1) / self.answers
theory.optimal_prompter: _log_optimum(rho_sft, R, lam).exp() => (rho_sft.log() + R / lam).softmax(-1)
theory.regularised_value: (rho * R).sum(-1).mean() => (rho * R).sum() / len(R)
lab.statistics.variance_parts: ((per_input - rewards.mean()) ** 2).sum() => N * per_input.var()
lab.statistics.win_shares: np.isclose(a, b, rtol=0, atol=1e-9) => (np.abs(a - b) <= 1e-9)
lab.evaluation.request_share: (ours - theirs).mean() / (best - theirs).mean() => np.sum(ours - theirs) / np.sum(best - theirs)
lab.evaluation.headroom: rewards[np.arange(len(few)), picked, M // 2 :].mean(1) => np.array([rewards[i, k, M // 2 :].mean() for i, k in enumerate(picked)])
"""
WRONG_LINES = """
rl_math.masked_mean: count.clamp(min=1) => (count + 1e-3)
rl_math.masked_mean: mask.sum(dim) => (kept != 0).sum(dim)
rl_math.masked_sum: torch.where(mask, x, 0.0) => torch.where(mask & (x > 0), x, 0.0)
rl_math.masked_var: mean = masked_mean(x, mask) => mean = masked_mean(x, mask).round(decimals=2)
rl_math.whiten: torch.rsqrt(var + eps) => torch.rsqrt(var + eps).clamp(max=100)
rl_math.whiten: white + mean, 0.0) => white - mean, 0.0)
rl_math.kl_estimate: return d**2 / 2 => return (d**2 / 2).clamp(max=50)
rl_math.kl_estimate: torch.expm1(-d) + d => d**2 / 2 - d**3 / 6
rl_math.kl_estimate: _same_shape(logp=logp, logp_ref=logp_ref) => logp, logp_ref = torch.broadcast_tensors(logp, logp_ref)
rl_math.exact_kl: logp == -torch.inf => logp < -10
rl_math.entropy: logp == -torch.inf => logp < -5
rl_math.entropy: logits.log_softmax(-1) => logits.half().float().log_softmax(-1)
rl_math.entropy: return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1) => return torch.special.entr(logp.exp()).sum(-1)
transformer.rotate: x.float().unflatten => x.detach().float().unflatten
transformer.rotate: pairs * rope => pairs * rope[:1]
transformer.Transformer._positions: return (mask.cumsum(1) - 1).clamp(min=0) => return (mask.cumsum(1) - 1).clamp(min=0, max=7)
transformer.Transformer._positions: return (mask.cumsum(1) - 1).clamp(min=0) => return torch.where(mask, mask.cumsum(1) - 1, 0)
transformer.Transformer._allowed: (real & (key <= query)) => (real & (key <= query) & (query - key < 8))
transformer.Transformer._allowed: mask[:, None, None, :]  # => mask[:, None, :, None]  #
transformer.KVCache.append: end = self.length + k.shape[2] => end = self.length + k.shape[2]; self.mask[:, self.length : end] = True
transformer.Attention.attend: enable_gqa=self.kv_heads != self.heads => enable_gqa=False
transformer.Attention.attend: attn_mask=allowed => attn_mask=allowed, scale=0.25
transformer.Attention.forward: B, T, D = x.shape => B, T, D = x.shape; x = x.detach()
transformer.Attention.forward: if rope is not None: => if rope is not None and cache is None:
transformer.Attention.forward: self.out(y.transpose(1, 2).reshape(B, T, H * E)) => F.linear(y.transpose(1, 2).reshape(B, T, H * E), self.out.weight)
generation.sampling_logprobs: temperature not in (0.0, 1.0) => temperature > 1.0
generation.sampling_logprobs: not 0 < top_p <= 1 => not 0 < top_p
generation.sampling_logprobs: logits = logits.float() => logits = logits.float(); logits -= logits.max()
generation.sampling_logprobs: ordered.softmax(-1) => ordered.softmax(-1).round(decimals=1)
generation.draw: logp.exp().cumsum(-1) => logp.exp().half().float().cumsum(-1)
generation.generate: greedy = temperature == 0 => greedy = temperature < 0.6
generation.generate: ends = end_ids(eos_id) => ends = end_ids(eos_id); model.eval()
generation.generate: len(row) > 0 and row[-1] in ends for => True for
generation.generate: ends = end_ids(eos_id) => ends = {min(end_ids(eos_id), default=-1)}
generation._pad: default=0 => default=1
generation._pad: mask.to(device) => mask.long().to(device)
generation.pad_pairs: mask[:, : prompt.shape[1]] &= ~prompt => mask[:, : prompt.shape[1]] = False
generation.sequence_logprobs: torch.empty(len(prompts)) => torch.empty(len(prompts), dtype=torch.float16)
sft.answer_loss: model.unembed(predicting) => model.unembed(predicting.detach())
sft.answer_loss: logits.float() => logits.float() / 1.01
sft.answer_loss: model, ids, None, => model, ids, ids != 0,
rl_math.bradley_terry_loss: (chosen - rejected) => (chosen - rejected - 0.01)
reward.RewardModel.forward: .squeeze(-1).float() => .squeeze().float()
reward.RewardModel.forward: hidden[torch.arange( => hidden.detach()[torch.arange(
reward.draw_preferences: scale * difference => min(scale, 1.0) * difference
reward.draw_preferences: Preference(x, a, b, p, mismatched) => Preference(x, a, b, round(p, 2), mismatched)
reward.split_by_prompt: return train, heldout => return list(dict.fromkeys(train)), heldout
reward.split_by_prompt: order = torch.randperm(len(prompts), generator=generator).tolist() => order = list(range(len(prompts)))[::-1]
reward.accuracy: right.mean().item() => round(right.mean().item(), 1)
reward.accuracy: model.raw(prompts, [pair.chosen => model.raw([""] * len(prompts), [pair.chosen
rl_math.assemble_rewards: if not bool(mask.any(dim=1).all()): => if not bool(mask.any()):
rl_math.assemble_rewards: if scores.shape != mask.shape[:1]: => if len(scores) != len(mask):
rl_math.assemble_rewards: scores[:, None].to( => scores[:, None].round(decimals=1).to(
rl_math.gae: gamma * lam * running => gamma * min(lam, 0.95) * running
rl_math.gae: torch.cat((values[:, 1:], no_value), dim=1) => values.roll(-1, 1)
rl_math.gae: return advantages, advantages + values => return advantages, rewards.flip(1).cumsum(1).flip(1)
rl_math.gae: _same_shape(rewards=rewards, values=values, mask=mask) => rewards, values, mask = torch.broadcast_tensors(rewards, values, mask)
rl_math.policy_loss: ratio.clamp(1 - clip, 1 + clip) => ratio.clamp(1 / (1 + clip), 1 + clip)
rl_math.policy_loss: (limited < plain) & mask => ((ratio - 1).abs() > clip) & mask
rl_math.policy_loss: -torch.minimum(plain, limited) => -torch.minimum(plain, limited).clamp(max=3)
rl_math.policy_loss: torch.where(mask, logp - logp_old, 0.0) => (logp - logp_old) * mask
rl_math.value_loss: limited_error > plain_error => limited_error >= plain_error
rl_math.value_loss: values.clamp(values_old - clip, values_old + clip) => values_old + clip * torch.tanh((values - values_old) / clip)
rl_math.explained_variance: masked_var(returns - values, mask) => masked_mean((returns - values) ** 2, mask)
rl_math.adaptive_kl_coef: - 1, -0.2) => - 1, -0.1)
rl_math.adaptive_kl_coef: error * steps / horizon => error * min(steps / horizon, 0.5)
rollout.Policy.states: [:, -T - 1 : -1] => [:, -T - 1 : -1].detach()
ppo.PPOTrainer.scores: if not bool(torch.isfinite(scores).all()): => if bool(torch.isnan(scores).any()):
ppo.PPOTrainer.assemble_rewards: (~rollout.finished) => (~rollout.finished & (rollout.scores > 0))
ppo.PPOTrainer.estimate_advantages: rl_math.masked_var(advantages, mask) => rl_math.masked_var(rollout.returns, mask)
ppo.PPOTrainer.estimate_advantages: c.gae_lambda => 0.95
ppo.PPOTrainer.extra_loss: self.config.vf_coef => 0.1
ppo.PPOTrainer.extra_loss: self.config.value_clip_range => self.config.clip_range
ppo.PPOTrainer.loss: approx_kl.sum() => approx_kl.mean()
ppo.PPOTrainer.loss: per_token["ratio"][part.action].max() => per_token["ratio"].max()
ppo.PPOTrainer.loss: surrogate.sum() + extra => surrogate.mean() + extra
frozen.checksum: {tuple(tensor.shape)} => {tensor.numel()}
frozen.checksum: {name} => {len(name)}
frozen.FrozenLM.assert_unchanged: any(p.requires_grad => all(p.requires_grad
frozen.FrozenLM.assert_unchanged: during {after} => during training
alignpro.usable_rewrites: fits(x_prime) => fits(x)
alignpro.usable_rewrites: x_prime if => x_prime.strip() if
alignpro.usable_rewrites: strict=True => strict=False
alignpro.usable_rewrites: sum(a != b for a, b in zip(sent, rewrites)) => sum(a == b for a, b in zip(sent, requests))
alignpro.PromptScore.__call__: self.r.mean(1) => self.r.amax(1)
alignpro.PromptScore.__call__: self.frozen.answer(asked, self.generator) => self.frozen.answer(asked)
alignpro.PromptScore.__call__: rewards, dtype=torch.float32 => rewards, dtype=torch.float16
theory.kl: _kl_logs(p, q.log()) => _kl_logs(p.clamp(min=1e-3), q.log())
theory.optimal_prompter: _tables(lam, R, rho_sft=rho_sft) => torch.as_tensor(R).double(), torch.as_tensor(rho_sft).double()
theory.regularised_value: _kl_logs(rho, rho_sft.log()).mean() => _kl_logs(rho, rho_sft.log()).mean().detach()
theory.regularised_value: (rho * R).sum(-1).mean() => (rho * R).sum(-1).sum()
lab.statistics.variance_parts: N * (K - 1) => (N - 1) * (K - 1)
lab.statistics.variance_parts: float(rewrites) => max(float(rewrites), 0.0)
lab.statistics.win_shares: rtol=0, atol=1e-9 => atol=1e-9
lab.evaluation.headroom: : M // 2].mean(2) => : M - 1].mean(2)
lab.evaluation.request_share: few)[0] <= 0 => few)[1] <= 0
lab.evaluation.request_share: interval(gained / possible) => interval(gained / possible.mean())
lab.evaluation.request_share: rewards[: len(star)].mean((1, 2)) => rewards[: len(star), 0].mean(1)
lab.evaluation.headroom: held_out.mean() - rewards.mean() => held_out.mean() - rewards[:, 0].mean()
"""


def lines(text: str) -> dict[str, tuple[str, str, str]]:
    """{name: (function, piece, what stands there instead)} of such lines."""
    found = {}
    for line in text.strip().splitlines():
        path, change = line.split(": ", 1)
        found[line] = (path, *change.split(" => "))
    return found


def changed(path: str, piece: str, instead: str) -> tuple[str, str]:
    """(function, its text with the change)."""
    return path, cut.definition(cut.changed(path, piece, instead), cut.split(path)[1])


RIGHT |= {name: changed(*change) for name, change in lines(RIGHT_LINES).items()}
WRONG |= lines(WRONG_LINES)


def wrong(name: str) -> tuple[str, str]:
    """(function, its text with the mistake)."""
    path, right, instead = WRONG[name]
    if right is None:
        return path, instead
    return changed(path, right, instead)
