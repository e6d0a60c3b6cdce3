"""Names and colours of the arms, and every metric explained: meaning, healthy range, what a bad value means."""

from __future__ import annotations

ARMS = {  # arm: its name, and its one colour in every plot (Okabe-Ito: safe for the colour-blind)
    "no_finetuning": ("no fine-tuning", "#6b7280"),
    "fixed_rewrite": ("fixed rewrite", "#d55e00"),
    "untrained_prompter": ("SFT prompter", "#cc79a7"),
    "best_of_n": ("best-of-n rewrites", "#e69f00"),
    "best_of_n_answers": ("best-of-n answers", "#b59f00"),
    "align_pro": ("Align-Pro", "#0072b2"),
    "rlhf_oracle": ("oracle", "#009e73"),
    "closed_form": ("closed form", "#56b4e9"),
}
PARTS = {"between_inputs": "#e69f00", "between_rewrites": "#cc79a7", "within": "#56b4e9", "total": "black"}
TRIO = ("no_finetuning", "align_pro", "rlhf_oracle")  # the arms that the paper compares
GLOSSARY = """\
loss heldout_loss | cross-entropy, nats per token (reward: per pair) | falls, flattens | held-out rises: overfitting
accuracy heldout_accuracy accuracy_ci95 | share of pairs ranked like their label; 95% interval of the held-out one | held-out near the ceiling | 0.5: nothing learned
margin | reward of the chosen minus the rejected answer | above 0, levels off | keeps growing: overfitting
swap_accuracy swap_ceiling | by part of the request, the model's and the gold reward's: subject: the answer is rated above one to another request; wish: two answers are ranked as each of two wishes demands | near the ceiling | 0.5: r(x, y) does not read this part of x
ceiling always_longer | accuracy of the gold reward; of the longer answer | far apart | close: it may only count words
length_matched length_matched_pairs truncated_accuracy | held-out accuracy where both answers are about equally long (within 10 %); number of such pairs; accuracy on answers cut as the frozen LM's are | near accuracy | far below: it counts words; cannot rate half an answer
score_mean | mean score of a batch, before any penalty | rises | falls: learning rate too high
reward_mean | mean score - missing-EOS penalty - λ KL: what PPO maximises | rises | falls: the KL costs too much
score_std advantage_std | standard deviation over the batch | steady, may shrink | near 0: no signal left to learn from
gold_mean gold_variance | of the true reward, never trained on | mean rises | mean falls: over-optimisation
kl kl_k1 | KL(ρ‖ρ_sft), nats per sequence; k1: mean log-ratio | 0 to 15 | above: raise λ; long below 0: masking bug
kl_k3 kl_exact | the same KL by e^(-d) - 1 + d; over the whole vocabulary | close to k1 | far: masking bug
logp_gap | largest distance of a token's log-prob when sampled and when scored | float32 below 0.001, bfloat16 below 0.5 (SmolLM2-135M: 0.04 on average, at most 0.35) | above: sampled in another way than scored
entropy | of the policy, nats per token | falls slowly | near 0 early: collapsed; rising: gibberish
policy_loss value_loss | clipped surrogate; squared error of the value head | near 0; falls | swings, grows: step too large
clip_fraction value_clip_fraction | share of tokens clipped | 0.01 to 0.2 | above 0.3: step too large
ratio_max approx_kl | largest probability ratio; KL of the old to the new policy | below 3; below 0.02 | above: step too large
explained_variance | 1 - Var(return - value) / Var(return) | climbs to 0.3 to 0.9 | below 0: worse than a constant
grad_norm | gradient norm before clipping | steady | spikes: outlier batches, or learning rate too high
missing_eos fallback_rate | share truncated at the token limit; share empty or too long, so x was sent | near 0 | high: rewrites ramble, or are empty
objection_rate | share of rewrites to which the guards object: empty, long, repeats, language, content lost, answers | near 0 | high: x' is no rewrite of x
truncated inputs | share of answers truncated at the token limit; requests of the arm | near 0 | high: the reward sees half an answer
completion_length rewrite_length answer_length | mean tokens, EOS included: of PPO's completions, rewrites, answers | steady | at the limit: rambles; 1: collapsed
lr kl_coef | learning rate; λ, the KL penalty coefficient | as scheduled; steady | λ runs off: KL target out of reach
tokens_per_s rollout_s score_s update_s | speed; seconds to sample, score, update | steady | slower: longer sequences
mean ci95 difference | learned reward; its 95% interval; minus no fine-tuning's | above 0 | covers 0: no gain shown
win_rate tie_rate | answers won (ties half), tied against no fine-tuning | wins > 0.5 | below: no broad gain
right_rate worked_rate asks_for_steps | shares, reasoning: answers right, worked in steps; rewrites that ask for it | above no fine-tuning | falls as reward rises: style over substance
variance variance_ratio gold_variance_ratio | of the learned reward; Align-Pro's / no fine-tuning's; that of the gold reward | below 1 | above 1: less predictable
variance_within_requests variance_ratio_within_requests gold_variance_within_requests gold_variance_ratio_within_requests | the part between rewrites + within, and its ratio to no fine-tuning's: no offset b(x) of a learned reward changes it | ratio below 1 | above 1: less predictable
predicted_variance_ratio predicted_variance_ratio_within_requests | what the closed form says of the two ratios before any PPO | near the measured ones | far: PPO is far from the optimum
over_fixed over_fixed_ci95 gold_over_fixed gold_over_fixed_ci95 | Align-Pro minus the best fixed rewrite, paired; its 95% interval; of the gold reward | above 0 | covers 0: one sentence does as much
request_share request_share_ci95 | (Align-Pro - fixed rewrite) / (closed form - fixed rewrite) on the same requests | 0.85 to 1 | low: the prompter does not read the request; none: one sentence is enough
fixed_rewrite | the best kind of rewrite for all requests, by successive halving with as many answers as PPO used | - | -
between_inputs | variance component: some requests are easier | falls | grows: only some inputs gain
between_rewrites | variance component: rewrites of one input | near 0 after RL | large: the prompter is undecided
within | variance component: the frozen LM's own sampling | falls | grows: good rewrites are less reliable
gap_closed difference_to_oracle | Align-Pro's gain / the oracle's, at its KL coefficient; Align-Pro minus oracle | 0 to 1 | below 0: harm; above 1: weak oracle
attainable_gain | J_λ(ρ*) - J_λ(ρ_sft), what rewriting can gain | above 0 | near 0: nothing to gain
attainable_gain_share | share of J_λ(ρ*) - J_λ(ρ_sft) that PPO took; ρ*: closed form over the enumerated rewrites | above 0.95 | low: PPO stopped early or collapsed
attainable_gain_share_cross_fitted attainable_gain_share_less_unlisted | the same share: cross-fitted; less unlisted_cost | near the first | differ: noisy R; mass outside
regularised_gap lambda_kl_to_optimum | J_λ(ρ*) - J_λ(ρ); λ KL(ρ‖ρ*), two routes to one number | near 0 and equal | differ: a bug
mass_outside mass_outside_sft | probability that ρ, ρ_sft give to rewrites that are not enumerated | below 0.1 | grows in PPO: garbled rewrites
optimum_noise unlisted_cost | what the share leaves out: noise in R; the cost of mass outside | far below the gap | near it: more --theory.answers
r_standard_error r_max | of R, the mean reward of a rewrite; range of the rewards; both as PPO sees them | below λ | above: more --theory.answers
delta1 delta2 delta3 | J(oracle) - J(π_F), J(π_F) - J(ρ_sft), J(ρ_sft) - J(ρ*), as PPO sees rewards | first above 0, last below | last above 0: a bug
bound_paper bound_sharp | upper bounds on the sum of the three, estimated; the paper's as recalled | above the sum | far below it: a bug
icc best_rewrite_gain | share of the variance due to wording; gain of the best rewrite | icc > 0.1 | 0: RL cannot help
"""
_ROWS = [line.split(" | ") for line in GLOSSARY.splitlines()]
# key: meaning, healthy range, what a bad value means
METRICS: dict[str, tuple[str, ...]] = {key: tuple(told) for keys, *told in _ROWS for key in keys.split()}
