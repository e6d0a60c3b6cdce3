"""What servers send in place of an answer, or around it. The forms are those of public bug reports and manuals:

vllm-project/vllm #17349 and #17357, QwenLM/Qwen3 #1297 (content null beside reasoning); UKGovernmentBEIS/inspect_ai #5143
and Mistral's manual (names of finish_reason, content in parts); OpenRouter's and LM Studio's manuals (errors with status
200); langchain-ai/langchain PR 35236, microsoft/autogen #2202, lmstudio-ai/lmstudio-bug-tracker #618,
mistralai/platform-docs-public #7 (errors); DeepSeek's, Zhipu's and Google's manuals (further names). Those of the tables
FURTHER_... stand beside each.
"""

import email.utils
import json
import time

import pytest

from alignpro_mini.remote.replies import (
    Broken,
    Outage,
    Refusal,
    Reply,
    Usage,
    read,
    refused_field,
    retry_after,
    without_thinking,
    words,
)

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TOOL = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def whole(message: dict, finish="stop", usage=USAGE, **more) -> dict:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage} | more


def reply(value: object, status: int = 200, **headers: str) -> Reply:
    """A reply with these headers (`retry_after` stands for retry-after)."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Reply(status, {name.replace("_", "-"): text for name, text in headers.items()}, data)


def error(message: object, **more) -> dict:
    return {"error": {"message": message} | more}


@pytest.mark.parametrize(
    "message, finish, text, truncated, notes",
    [
        ({"content": "Four."}, "stop", "Four.", False, ()),
        ({"content": "Four."}, "eos", "Four.", False, ()),
        ({"content": "Four."}, "end_turn", "Four.", False, ()),
        ({"content": "Four."}, None, "Four.", False, ()),
        ({"content": "Four."}, "whim", "Four.", False, ("unknown_end",)),
        ({"content": "It is"}, "length", "It is", True, ()),
        ({"content": "It is"}, "LENGTH", "It is", True, ()),
        ({"content": "It is"}, "max_tokens", "It is", True, ()),
        ({"content": "It is"}, "MAX_TOKENS", "It is", True, ()),
        ({"content": "It is"}, "model_length", "It is", True, ()),
        ({"content": "It is"}, "max_output_tokens", "It is", True, ()),
        ({"content": "It is"}, "token_limit", "It is", True, ()),
        ({"content": "It is"}, "content_filter", "It is", True, ("filtered",)),
        ({"content": None}, "SAFETY", "", True, ("filtered",)),
        ({"content": None, "reasoning_content": "Hm"}, "length", "", True, ("thought",)),
        ({"content": "", "reasoning": "Hm"}, "length", "", True, ("thought",)),
        ({"content": ""}, "length", "", True, ("empty",)),
        ({"content": ""}, "stop", "", False, ("empty",)),
        ({"content": None, "refusal": "I cannot."}, "stop", "I cannot.", False, ()),
        ({"content": "Four.", "reasoning_content": "Hm", "tool_calls": []}, "stop", "Four.", False, ()),
        ({"content": [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}]}, "stop", "Four.", False, ()),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"text": "Four."}]},
            "stop",
            "Four.",
            False,
            (),
        ),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}]}, "stop", "I cannot.", False, ()),
        ({"content": "<think>Hm.</think>Four."}, "stop", "<think>Hm.</think>Four.", False, ("thinks",)),
        ({"content": "Hm.</think>Four."}, "stop", "Hm.</think>Four.", False, ("thinks",)),
        ({"content": "Fine \ud83d"}, "length", "Fine ?", True, ()),
        ({"role": None, "content": "Four."}, "stop", "Four.", False, ()),
    ],
)
def test_an_answer_is_read_whatever_its_form(message, finish, text, truncated, notes):
    found = read(reply(whole(message, finish)), max_tokens=8)
    assert (found.text, found.truncated, found.notes, found.usage) == (text, truncated, notes, Usage(3, 4))


@pytest.mark.parametrize(
    "message, finish, kind, said",
    [
        (
            {"content": None, "reasoning_content": "The answer is four."},
            "stop",
            Refusal,
            "19 characters of reasoning_con",
        ),
        ({"content": "", "reasoning": "Four."}, "stop", Refusal, "content is empty beside 5 characters of reasoning"),
        ({"content": None, "reasoning_details": [{"text": "Four"}]}, None, Refusal, "of reasoning_details"),
        (
            {"content": [{"type": "reasoning", "text": "Hm"}]},
            "stop",
            Refusal,
            "content is null beside a part of the type rea",
        ),
        ({"content": None, "tool_calls": TOOL}, "tool_calls", Refusal, '"name": "f"'),
        ({"content": "I look it up.", "tool_calls": TOOL}, "stop", Refusal, "none was offered"),
        ({"content": None, "function_call": {"name": "f"}}, "function_call", Refusal, "calls a tool"),
        ({"content": None}, "stop", Broken, "content is null"),
        ({}, "stop", Broken, "content is null"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "stop", Broken, "content is null"),
        ({"content": 4}, "stop", Broken, "content is of the type int"),
        ({"content": {"text": "Four."}}, "stop", Broken, "content is of the type dict"),
        ({"content": "Hal"}, "error", Broken, "finish_reason error"),
        ({"content": "Hal"}, "abort", Broken, "finish_reason abort"),
        ({"content": "Hal"}, "insufficient_system_resource", Broken, "insufficient_system_resource"),
        ({"content": "Hal"}, "network_error", Broken, "network_error"),
    ],
)
def test_half_an_answer_or_none_is_never_a_finished_one(message, finish, kind, said):
    with pytest.raises(kind, match=said) as told:
        read(reply(whole(message, finish)), max_tokens=8)
    assert told.value.usage == Usage(3, 4), "it was paid for"


FURTHER_ENDS = [  # finish_reason, and what it means: truncated, a note
    ("", False, ()),  # ollama/ollama #4357
    ("eos_token", False, ()),  # vibrantlabsai/ragas #1548, of watsonx
    ("model_context_window_exceeded", True, ()),  # laravel/ai PR 955, of Anthropic
    ("incomplete", True, ()),  # OpenAI's status of a response that reached its limit
    ("pause_turn", True, ()),  # Anthropic's: it would go on
    ("ERROR_LIMIT", True, ()),  # BerriAI/litellm #494, of Cohere
    ("ERROR_TOXIC", True, ("filtered",)),  # the same
    ("refusal", True, ("filtered",)),  # BerriAI/litellm PR 23800
    ("FINISH_REASON_UNSPECIFIED", False, ("unknown_end",)),  # Google's
]


@pytest.mark.parametrize("finish, truncated, notes", FURTHER_ENDS)
def test_further_names_of_an_end(finish, truncated, notes):
    found = read(reply(whole({"content": "It is"}, finish)), max_tokens=8)
    assert (found.text, found.truncated, found.notes) == ("It is", truncated, notes)


@pytest.mark.parametrize("finish", ["engine_overloaded", "preempted", "USER_CANCEL"])
def test_further_names_of_half_an_answer(finish):
    with pytest.raises(Broken, match="half an answer"):
        read(reply(whole({"content": "It is"}, finish)), max_tokens=8)


@pytest.mark.parametrize("content", ["", None])
def test_a_tool_call_that_the_server_lost_is_no_empty_answer(content):
    """vllm-project/vllm #27572: the reason of the end is there, and the call is not."""
    with pytest.raises(Refusal, match="calls a tool"):
        read(reply(whole({"content": content, "tool_calls": []}, "tool_calls")), max_tokens=8)


def test_half_a_character_at_the_limit_is_no_lost_answer():
    """ggml-org/llama.cpp PR 14937: a token may be half of a character, in bytes that are no UTF-8."""
    data = json.dumps(whole({"content": "Fine X"}, "length")).encode().replace(b"X", b"\xf0\x9f\x98")
    found = read(reply(data), max_tokens=8)
    assert (found.text, found.truncated) == ("Fine \ufffd", True)


@pytest.mark.parametrize("told", ["CUDA out of memory", {"message": "CUDA out of memory"}])
def test_an_error_beside_the_choices_is_told(told):
    with pytest.raises(Broken, match="CUDA out of memory"):
        read(reply(whole({"content": "Hal"}, error=told)), 8)
    assert read(reply(whole({"content": "Four."}, error=None)), 8).text == "Four."  # ollama/ollama #13371


def test_an_error_beside_a_choice_is_told():
    value = whole({"content": ""}, "stop")
    value["choices"][0]["error"] = {"code": 502, "message": "Upstream error"}
    with pytest.raises(Broken, match="Upstream error"):
        read(reply(value), 8)


def test_the_first_choice_is_the_one_with_the_first_number():
    value = whole({"content": "first"})
    value["choices"].insert(0, {"index": 1, "message": {"content": "second"}, "finish_reason": "stop"})
    assert read(reply(value), 8).text == "first"


@pytest.mark.parametrize(
    "told, usage",
    [
        ({"prompt_tokens": 3.0, "completion_tokens": 4.0}, Usage(3, 4)),
        ({"prompt_tokens": "3", "completion_tokens": "4"}, Usage(3, 4)),
        (None, None),
        ({}, None),
        ({"total_tokens": 7}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": -3, "completion_tokens": 4}, None),
        ({"prompt_tokens": 3, "completion_tokens": None}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": 4}, None),
        ([3, 4], None),
    ],
)
def test_usage_is_read_or_known_to_be_unknown(told, usage):
    assert read(reply(whole({"content": "Four."}, usage=told)), 8).usage == usage


def test_without_a_reason_an_answer_of_as_many_tokens_as_allowed_is_truncated():
    assert read(reply(whole({"content": "It is"}, None)), max_tokens=4).truncated
    assert not read(reply(whole({"content": "It is"}, "stop")), max_tokens=4).truncated


def test_thoughts_that_are_only_counted_are_named():
    hidden = USAGE | {"completion_tokens_details": {"reasoning_tokens": 4}}
    assert read(reply(whole({"content": ""}, "length", hidden)), 8).notes == ("thought",)
    with pytest.raises(Refusal, match="4 tokens of reasoning"):
        read(reply(whole({"content": ""}, "stop", hidden)), 8)


@pytest.mark.parametrize(
    "text, rest, found",
    [
        ("<think>\nHm.\n</think>\n\nFour.", "Four.", True),
        ("[THINK]Hm.[/THINK]Four.", "Four.", True),
        ("<Thinking>Hm.</Thinking> Four.", "Four.", True),
        ("Hm.</think>Four.", "Four.", True),
        ("<think>Hm", "", True),
        # ggml-org/llama.cpp PR 15181 (gpt-oss), kekzl/imp PR 768 (Gemma 4), and the tags of Kimi, Seed, Command, OpenThinker
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.", "Four.", True),
        ("<|channel|>analysis<|message|>Hm", "", True),
        ("<|channel>thought\nHm.<channel|>Four.", "Four.", True),
        ("◁think▷Hm.◁/think▷Four.", "Four.", True),
        ("<seed:think>Hm.</seed:think>Four.", "Four.", True),
        ("<|START_THINKING|>Hm.<|END_THINKING|>Four.", "Four.", True),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>Four.", "Four.", True),
        ("Four.", "Four.", False),
        ("Write <think>a</think> around it.", "Write <think>a</think> around it.", False),
    ],
)
def test_thoughts_are_taken_off(text, rest, found):
    assert without_thinking(text) == (rest, found)


def test_an_answer_that_is_all_thought_is_no_answer():
    value = whole({"content": "<think>Hm.</think>"})
    with pytest.raises(Refusal, match="content is empty beside thoughts in the text"):
        read(reply(value), 8, strip_thinking=True)
    cut = read(reply(whole({"content": "<think>Hm"}, "length")), 8, strip_thinking=True)
    assert (cut.text, cut.truncated, cut.notes) == ("", True, ("thought",))
    assert read(reply(whole({"content": "<think>Hm.</think>Four."})), 8, strip_thinking=True).text == "Four."


# ---------------------------------------------------------------- errors

OPENAI_QUOTA = error(
    "You exceeded your current quota, please check your plan and billing details.", type="insufficient_quota"
)
GOOGLE_MINUTE = error("You exceeded your current quota. Please retry in 33.8s.", status="RESOURCE_EXHAUSTED")
OPENAI_MINUTE = error(
    "Rate limit reached: Limit 3 / min. Add a payment method to your account.", code="rate_limit_exceeded"
)


LITELLM_SEED = error("ollama does not support parameters: {'seed': 1}, for model=llama3:latest", type=None, code=500)
LLAMA_CPP_CONTEXT = error("Context size has been exceeded.", code=500, type="server_error")
TGI_TOO_LONG = {
    "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
    "error_type": "x",
}
FURTHER_ERRORS = [
    (500, LITELLM_SEED, Refusal, 400, "'seed'"),  # BerriAI/litellm #3923
    (500, LLAMA_CPP_CONTEXT, Refusal, 400, "Context size"),  # ggml-org/llama.cpp #19774
    (500, error("context deadline exceeded"), Outage, 500, "deadline"),  # Go's words: another try may help
    (422, TGI_TOO_LONG, Refusal, 422, "max_new_tokens"),  # huggingface/huggingface_hub #2514
    (200, TGI_TOO_LONG, Broken, 0, "max_new_tokens"),  # huggingface/text-generation-inference #2749
    (424, {"error": "Incomplete generation", "error_type": "generation"}, Outage, 424, "Inc"),  # the same, #3050
    (498, error("Flex tier capacity exceeded"), Outage, 498, "capacity"),  # laravel/ai PR 925, of Groq
    (400, error("Your credit balance is too low."), Refusal, 402, "credit"),  # CLIProxyAPI PR 3859
    (403, {"code": "x", "error": "has used all available credits"}, Refusal, 402, "credits"),  # xAI's words
    (200, error("Rate limit exceeded: free-models-per-day", code=429), Outage, 429, "per-day"),  # Aider-AI/aider #3550
    (400, [error('Invalid JSON payload. Unknown name "seed"', code=400)], Refusal, 400, "seed"),  # mcpchecker PR 188
]


@pytest.mark.parametrize(
    "status, value, kind, of, said",
    [
        *FURTHER_ERRORS,
        (200, error("Provider returned error: quota is used up", code=429), Refusal, 402, "quota is used up"),
        (200, error("Provider returned error", code=502, metadata={"raw": "no GPU"}), Outage, 502, "no GPU"),
        (200, error("No endpoints found", code=404), Refusal, 404, "No endpoints found"),
        (200, {"error": "Unexpected endpoint or method."}, Broken, 0, "Unexpected endpoint or method."),
        (200, {"detail": "Model is loading"}, Broken, 0, "^Model is loading$"),
        (200, {"object": "error", "message": "no GPU", "code": 503}, Outage, 503, "no GPU"),
        (200, {"error": {"message": "Your balance is 0", "code": "1113"}}, Refusal, 402, "Your balance is 0"),
        (200, b'data: {"choices": []}\n\ndata: [DONE]\n\n', Broken, 0, "no JSON object, but data:"),
        (200, {"choices": [{"index": 0, "text": "Fine."}]}, Broken, 0, "a choice without a message"),
        (200, {"model": "m", "message": {"content": "Fine."}, "done": True}, Broken, 0, "done, message, model"),
        (200, {"choices": None}, Broken, 0, "no choices"),
        (200, {"choices": [1]}, Broken, 0, "no objects"),
        (200, b"<html><head><style>a{b:c}</style></head><body>Hello</body></html>", Broken, 0, "but Hello"),
        (200, b"", Broken, 0, "but nothing"),
        (200, b"[" * 100_000, Broken, 0, "no JSON object"),
        (200, b"null", Broken, 0, "no JSON object"),
        (204, b"", Broken, 0, "no JSON object"),
        (302, b"", Refusal, 302, "moved"),
        (400, error("temperature is too hot"), Refusal, 400, "too hot"),
        (401, error("bad key"), Refusal, 401, "bad key"),
        (402, error("Insufficient credits"), Refusal, 402, "Insufficient credits"),
        (422, {"object": "error", "message": {"detail": [{"loc": ["body", "seed"]}]}}, Refusal, 422, '"seed"'),
        (
            422,
            {"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]},
            Refusal,
            422,
            "not permitted",
        ),
        (400, [error("API key not valid")], Refusal, 400, "API key not valid"),
        (429, OPENAI_QUOTA, Refusal, 402, "your plan"),
        (429, error("Please try again later.", code="insufficient_quota"), Refusal, 402, "try again"),
        (429, GOOGLE_MINUTE, Outage, 429, "retry in 33.8s"),
        (429, OPENAI_MINUTE, Outage, 429, "Limit 3"),
        (429, error("slow down"), Outage, 429, "slow down"),
        (503, error("Loading model"), Outage, 503, "Loading model"),
        (529, error("Overloaded"), Outage, 529, "Overloaded"),
        (
            502,
            b"<!DOCTYPE html><style>" + b"a{b:c}" * 999 + b"</style><h1>Bad gateway</h1>",
            Outage,
            502,
            "502 Bad gateway$",
        ),
    ],
)
def test_an_error_is_of_its_kind_and_keeps_the_servers_words(status, value, kind, of, said):
    with pytest.raises(kind, match=said) as told:
        read(reply(value, status), 8)
    assert told.value.status == of
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "status, value",
    [
        (400, error("filtered", code="content_filter")),
        (400, error("no", code="content_policy_violation")),
        (400, error("no", type="data_inspection_failed")),
        (403, error("Your input was flagged: this model requires moderation")),
        # BerriAI/litellm PR 16231: a proxy that wraps Azure's refusal
        (400, error("refused", code="400", provider_specific_fields={"e": {"code": "ResponsibleAIPolicyViolation"}})),
    ],
)
def test_a_prompt_that_a_filter_refuses_has_an_empty_answer_that_is_marked(status, value):
    found = read(reply(value, status), 8)
    assert (found.text, found.notes, found.usage.tokens) == ("", ("filtered",), 0)


def test_a_byte_order_mark_and_nan_are_no_obstacle():
    data = b"\xef\xbb\xbf" + json.dumps(whole({"content": "Four."}, logprobs=float("nan"))).encode()
    assert read(reply(data), 8).text == "Four."


@pytest.mark.parametrize(
    "said, field",
    [
        ("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.", "max_tokens"),
        ("'temperature' does not support 0.7 with this model. Only the default (1) value is supported.", "temperature"),
        ('{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "not permitted"}]}', "seed"),
        ("property 'seed' is unsupported", "seed"),
        ("Unrecognized request argument supplied: seed", "seed"),
        ("`temperature` and `top_p` cannot both be specified for this model", "top_p"),
        ("not supported: seed or temperature (param temperature)", "temperature"),
        ("max_tokens is too large: 5000. This model supports at most 4096 completion tokens", None),
        ("maximum context length is 512 tokens, max_tokens is not supported beyond it", None),
        ("temperature must be between 0 and 2", None),
        ("ollama does not support parameters: {'seed': 1}, for model=llama3", "seed"),  # BerriAI/litellm #3923
        ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', "seed"),  # mcpchecker PR 188
        ("Invalid 'seed': integer above maximum value. Expected a value <= 2147483647", None),
        ("the tools are not supported", None),
    ],
)
def test_a_refused_field_is_recognised_by_the_servers_words(said, field):
    assert refused_field(said, ["max_tokens", "seed", "top_p", "temperature"]) == field


def test_how_long_to_wait_is_read_as_seconds_milliseconds_or_a_date():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert 50 < retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) < 61
    # The year 99999: anthropics/anthropic-sdk-python PR 1827.
    dates = ("Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 99 Jan 2030 00:00:00 GMT")
    for told in ("", "soon", "-3", "0", "nan", "inf", *dates):
        assert retry_after({"retry-after": told}) is None


def test_what_a_server_says_is_one_printable_line():
    with pytest.raises(Broken) as told:
        read(reply(whole({"content": "Hal"}, "error\nTraceback\x1b[31m" + "x" * 999)), 8)
    assert str(told.value).isprintable() and len(str(told.value)) < 310
    said = words(json.dumps(error("a\nb\x1b[31m\u202e" + "c" * 999)).encode())
    assert said.startswith("a b [31m") and said.isprintable()
