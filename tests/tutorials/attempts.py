"""What students hand in: right functions that are written differently, and wrong ones that a careless check lets pass.

RIGHT   {name: (function, its text)}
WRONG   {name: (function, a piece of its module, what stands there instead)}; a piece of None: the text of the function
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

RIGHT = {
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
        "return self.config.vf_coef * loss.sum(), parts",
        "return self.config.vf_coef * (loss.sum() if self.config.whiten_advantages else loss.mean()), parts",
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
}


def wrong(name: str) -> tuple[str, str]:
    """(function, its text with the mistake)."""
    path, right, instead = WRONG[name]
    if right is None:
        return path, instead
    return path, cut.definition(cut.changed(path, right, instead), cut.split(path)[1])
