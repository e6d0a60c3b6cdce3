"""Vocabularies and chat templates of the kinds that are published, made here: no download."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from alignpro_mini.tokenizer import byte_level
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.pretrained import save_pretrained

TEXTS = [
    "hello world, what is this? Tell me about the sea; user assistant system human USER ASSISTANT Instruction Response",
    "[INST] tell me [/INST] <<SYS>> be kind <</SYS>> ### 12 3.5 über 漢字 <|im_start|> <s> </s> : | < > / _ - \n\n \t",
] * 20
WORDS = pre_tokenizers.Split(Regex(r"'s|[^\r\n\w]?\w+|\d{1,3}| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")


def added(names, **flags) -> list[AddedToken]:
    return [AddedToken(name, **{"special": True, "normalized": False} | flags) for name in names]


def bytes_of(control, normalizer=None, split=None, **flags) -> Backend:
    """Byte-level BPE: GPT-2's, and with another split Llama 3's and Qwen's."""
    made = byte_level(models.BPE(ignore_merges=split is not None))
    if split is not None:
        no_split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, no_split])
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    made.add_tokens(added(control, **flags))
    return made


def pieces(control, scheme="always", split=False, legacy=False, model="BPE", **flags) -> Backend:
    """SentencePiece's kinds: a space is ▁, with one before the first word by `scheme`, or by Llama 2's normaliser."""
    basic = ["<unk>", "<s>", "</s>"]
    if model == "Unigram":
        made = Backend(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=basic, unk_token="<unk>", show_progress=False, n_sub_iterations=1
        )
    else:
        made = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        byte_names = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*basic, *byte_names], show_progress=False)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    made.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    raw = json.loads(made.to_str())
    raw["added_tokens"] = raw["added_tokens"][:3]  # bytes are in the vocabulary alone
    made = Backend.from_str(json.dumps(raw))
    if legacy:
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_tokens(added(basic))
    made.add_tokens(added([name for name in control if name not in basic], **flags))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def low(control, **flags) -> Backend:
    """WordPiece that lowers all letters."""
    made = Backend(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    made.add_tokens(added(control, **flags))
    return made


VOCABULARIES = {
    "gpt2": bytes_of,
    "llama3": lambda control: bytes_of(control, split=WORDS),
    "qwen": lambda control: bytes_of(control, normalizers.NFC(), WORDS),
    "not special": lambda control: bytes_of(control, special=False),
    "rstrip": lambda control: bytes_of(control, rstrip=True),
    "lstrip": lambda control: bytes_of(control, lstrip=True),
    "normalised": lambda control: bytes_of(control, normalizers.NFKC(), normalized=True, special=False),
    "lower case": lambda control: bytes_of(control, normalizers.Lowercase(), normalized=True),
    "llama2": lambda control: pieces(control, legacy=True),
    "first": lambda control: pieces(control, "first"),
    "always": lambda control: pieces(control, "always"),
    "never": lambda control: pieces(control, "never"),
    "split": lambda control: pieces(control, "always", split=True),
    "pieces rstrip": lambda control: pieces(control, "first", rstrip=True),
    "unigram": lambda control: pieces(control, "always", split=True, model="Unigram"),
    "wordpiece": low,
}

EACH = "{% for m in messages %}"
NEXT = "{% endfor %}{% if add_generation_prompt %}"
# name -> (template, names, other control tokens); after published ones, in words of our own
TEMPLATES = {
    "chatml": (
        EACH
        + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        + NEXT
        + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        {"eos_token": "<|im_end|>"},
        ["<|im_start|>", "<|endoftext|>"],
    ),
    "chatml, a system message of its own": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
        + EACH
        + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        + NEXT
        + "<|im_start|>assistant\n{% endif %}",
        {"eos_token": "<|im_end|>"},
        ["<|im_start|>"],
    ),
    "no thinking": (
        EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}" + NEXT + "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ["<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>"],
    ),
    "headers": (
        "{{ bos_token }}"
        + EACH
        + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
        + NEXT
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "inst": (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content | trim + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        + EACH
        + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>"},
        [],
    ),
    "inst as tokens": (
        "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'system' %}"
        "[SYS]{{ m.content }}[/SYS]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>"},
        ["[INST]", "[/INST]", "[SYS]", "[/SYS]"],
    ),
    "plain text first": (
        "A chat. " + EACH + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'system' %}"
        "{{ m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
        + NEXT
        + "ASSISTANT:{% endif %}",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        [],
    ),
    "line ends": (
        EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}" + NEXT + "{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}",
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    ),
    "full width": (
        "{{ bos_token }}" + EACH + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}"
        + NEXT
        + "{{ '<｜Assistant｜>' }}{% endif %}",
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        ["<｜User｜>", "<｜Assistant｜>"],
    ),
    "turns": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + EACH
        + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}"
        + NEXT
        + "<start_of_turn>model\n{% endif %}",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ["<start_of_turn>", "<end_of_turn>", "\n\n"],
    ),
    "sections": (
        EACH
        + "{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content.strip() + '\n\n' }}{% elif m.role == 'assistant' %}"
        "{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif %}"
        + NEXT
        + "{{ '### Response:\n' }}{% endif %}",
        {"eos_token": "</s>", "bos_token": "<s>"},
        [],
    ),
    "a plain word": (
        EACH
        + "{{ m.role + ' says: ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %} over {% endif %}"
        + NEXT
        + "assistant says: {% endif %}",
        {"eos_token": "<end of answer>"},
        ["over", "says"],
    ),
}
SILENT_ABOUT_SYSTEM = ("turns", "sections")


def published(folder: Path, vocabulary: str, template: str, model: Transformer | None = None) -> Path:
    """A folder as a hub has it."""
    text, names, more = TEMPLATES[template]
    made = VOCABULARIES[vocabulary]([*dict.fromkeys([*more, *names.values()])])
    return write(folder, made, names | {"chat_template": text}, model)


def write(folder: Path, made: Backend, settings: dict | None, model: Transformer | None = None, **files) -> Path:
    """A folder with this vocabulary, tokenizer_config.json and further JSON files; a dict adds to one that is there."""
    size = 1 + max(made.get_vocab().values())
    if model is None:
        model = Transformer(TransformerConfig(size + size % 2, d_model=8, n_layers=1, n_heads=2, max_len=256))
    save_pretrained(model, folder)
    made.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, value in files.items():
        file = folder / f"{name}.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | value))
    return folder


def table_lm(size: int, rows: dict[int, int]) -> Transformer:
    """A model whose next token follows from the last one: `rows`, and id 0 elsewhere."""
    size += size % 2
    config = TransformerConfig(size, d_model=size, n_layers=1, n_heads=1, max_len=256, tied=False, norm_eps=1e-12)
    model = Transformer(config, torch.Generator().manual_seed(0))
    table = torch.zeros(size, size)
    table[:, 0] = 1.0
    for last, following in rows.items():
        table[last] = 0.0
        table[last, following] = 9.0
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(size))
        model.unembed.weight.copy_(table.T / size**0.5)
        model.blocks[0].attn.out.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
    return model.eval()
