"""What each assignment asks for: its folder, its functions and their points. The package is the reference solution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assignment:
    """`functions`: {"module.function" or "module.Class.method": points}; `whole` points go to all of them together."""

    folder: str
    title: str
    functions: dict[str, int]
    whole: int
    imports: tuple[str, ...]  # what a submission starts with
    twins: tuple[str, ...] = ()  # other functions of the package that do the same: empty while a submission is graded


TORCH = ("from __future__ import annotations", "", "import torch", "from torch import Tensor")
ASSIGNMENTS = {
    "a1": Assignment(
        "a1_masks_and_kl",
        "Masks and KL",
        {
            "rl_math.masked_mean": 14,
            "rl_math.masked_sum": 10,
            "rl_math.masked_var": 12,
            "rl_math.whiten": 14,
            "rl_math.kl_estimate": 16,
            "rl_math.exact_kl": 14,
            "rl_math.entropy": 10,
        },
        10,
        TORCH,
    ),
    "a2": Assignment(
        "a2_attention",
        "Attention, positions and the KV cache",
        {
            "transformer.rotate": 16,
            "transformer.Transformer._positions": 14,
            "transformer.Transformer._allowed": 18,
            "transformer.KVCache.append": 10,
            "transformer.Attention.attend": 16,
            "transformer.Attention.forward": 16,
        },
        10,
        (*TORCH[:3], "import torch.nn.functional as F", TORCH[3], "", "from alignpro_mini.transformer import KVCache"),
    ),
    "a3": Assignment(
        "a3_sampling",
        "Sampling and scoring in batches",
        {
            "generation.sampling_logprobs": 20,
            "generation.draw": 14,
            "generation.generate": 24,
            "generation._pad": 10,
            "generation.pad_pairs": 10,
            "generation.sequence_logprobs": 14,
        },
        8,
        (
            *TORCH[:2],
            "from collections.abc import Sequence",
            "",
            *TORCH[2:],
            "",
            "from alignpro_mini.generation import Completion, _token_logprobs, by_length, check_prompts, decode",
            "from alignpro_mini.generation import draw_uniforms, end_ids, pad_right, prefill",
            "from alignpro_mini.options import UserError",
            "from alignpro_mini.transformer import Transformer",
        ),
        ("fast.sampling.FastSampler.__call__",),
    ),
    "a4": Assignment(
        "a4_sft_and_reward",
        "SFT and the reward model",
        {
            "sft.answer_loss": 22,
            "rl_math.bradley_terry_loss": 12,
            "reward.RewardModel.forward": 18,
            "reward.draw_preferences": 14,
            "reward.split_by_prompt": 14,
            "reward.accuracy": 10,
        },
        10,
        (
            *TORCH[:2],
            "from collections.abc import Callable, Sequence",
            "",
            TORCH[2],
            "import torch.nn.functional as F",
            TORCH[3],
            "",
            "from alignpro_mini import training",
            "from alignpro_mini.generation import pad_pairs",
            "from alignpro_mini.reward import Preference, RewardModel",
            "from alignpro_mini.sft import Encoded",
            "from alignpro_mini.transformer import Transformer",
        ),
    ),
    "a5": Assignment(
        "a5_credit", "Credit: assembled rewards and GAE", {"rl_math.assemble_rewards": 40, "rl_math.gae": 45}, 15, TORCH
    ),
    "a6": Assignment(
        "a6_ppo",
        "PPO",
        {
            "rl_math.policy_loss": 18,
            "rl_math.value_loss": 12,
            "rl_math.explained_variance": 6,
            "rl_math.adaptive_kl_coef": 6,
            "rollout.Policy.states": 10,
            "ppo.PPOTrainer.scores": 8,
            "ppo.PPOTrainer.assemble_rewards": 8,
            "ppo.PPOTrainer.estimate_advantages": 8,
            "ppo.PPOTrainer.extra_loss": 6,
            "ppo.PPOTrainer.loss": 10,
        },
        8,
        (
            *TORCH,
            "",
            "from alignpro_mini import rl_math",
            "from alignpro_mini.generation import sampling_logprobs",
            "from alignpro_mini.options import UserError",
            "from alignpro_mini.rollout import Rollout",
            "from alignpro_mini.training import frozen_blocks",
            "from alignpro_mini.transformer import Transformer",
        ),
    ),
    "a7": Assignment(
        "a7_align_pro",
        "Align-Pro around a frozen model",
        {
            "frozen.checksum": 24,
            "frozen.FrozenLM.assert_unchanged": 18,
            "alignpro.usable_rewrites": 20,
            "alignpro.PromptScore.__call__": 28,
        },
        10,
        (
            *TORCH[:2],
            "import hashlib",
            "from collections.abc import Callable, Sequence",
            "",
            TORCH[2],
            "from torch import Tensor, nn",
            "",
            "from alignpro_mini.options import UserError",
        ),
    ),
    "a8": Assignment(
        "a8_optimum_and_statistics",
        "The optimum and the statistics",
        {
            "theory.kl": 10,
            "theory.optimal_prompter": 14,
            "theory.regularised_value": 12,
            "lab.statistics.variance_parts": 16,
            "lab.statistics.bootstrap_interval": 10,
            "lab.statistics.win_shares": 8,
            "lab.evaluation.headroom": 10,
            "lab.evaluation.request_share": 12,
        },
        8,
        (
            *TORCH[:2],
            "from dataclasses import replace",
            "",
            "import numpy as np",
            *TORCH[2:],
            "",
            "from alignpro_mini.alignpro import Prompter",
            "from alignpro_mini.lab.evaluation import EvalConfig, Evaluator",
            "from alignpro_mini.lab.statistics import Groups",
        ),
    ),
}
