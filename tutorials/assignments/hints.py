"""What the grader tells who made a known mistake: {name of the mutant in tests/mutants.py: hint}."""

HINTS = {
    # a1: masks and KL
    "mean-over-pads": "you divide by the number of columns; divide by the number of True entries of the mask",
    "pads-in-the-mean": "padded entries are in the sum; select by the mask first",
    "mask-by-product": "x * mask: garbage times 0 need not be 0 (inf * 0 is NaN); select with torch.where",
    "pads-in-the-sum": "padded entries are in the sum; select by the mask first",
    "whiten-over-pads": "mean and variance are those of all entries; use those under the mask",
    "whiten-fills-pads": "padding must come out as 0",
    "whiten-always-shifts": "with shift_mean=False the mean must stay: scale only",
    "k1-swapped": "the ratio is upside down: d = logp - logp_ref",
    "k3-swapped": "the ratio is upside down in k3: exp(-d) - 1 + d with d = logp - logp_ref",
    "exact-kl-swapped": "the two sides are swapped: KL(p || q) weighs by p",
    "exact-kl-gradient-nan": "the value is right, its gradient is NaN where a token is impossible: replace the log before the "
    "product, not the product after it",
    "entropy-divided-twice": "the entropy is a sum over the vocabulary, not a mean",
    "entropy-gradient-nan": "the value is right, its gradient is NaN where a token is impossible: replace the log before the "
    "product, not the product after it",
    # a5: credit
    "kl-bonus-for-penalty": "the KL is a penalty: its sign is minus",
    "k1-not-in-the-reward": "the KL penalty is missing: each token pays lam * kl",
    "score-one-after-eos": "you shifted the score one place past the last sampled token (EOS is sampled, too)",
    "score-in-the-last-column": "the score belongs to the last True of each row's mask, not to the last column",
    "score-of-an-empty-row": "a row without a sampled token has no place for its score: raise ValueError",
    "no-shape-check-of-scores": "scores (B, 1) would broadcast: raise ValueError unless scores is (B,)",
    "gae-bootstraps-from-padding": "the value after the last sampled token is 0; you read one from the padding",
    "gae-bootstraps-past-a-full-row": "after the last column there is no further value: V is 0 there, too",
    "returns-without-mask": "returns must be 0 on padding",
    "gae-pays-rewards-of-padding": "rewards in the padding must not count",
    "gae-without-gamma-in-the-decay": "the decay of the advantage is gamma * lam, not lam",
    "gae-without-gamma-in-the-error": "delta_t = r_t + gamma V_{t+1} - V_t: gamma is missing",
}
