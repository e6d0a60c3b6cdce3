"""A child process for what a model's folder brings along as a program: its chat template, its vocabulary's rules.

    python -P sandbox.py < request.json > reply.json

A template can loop for ever or ask for all memory, and so can a vocabulary's replacement rules; some inputs make the
library abort. Here that ends this process alone, within `SECONDS` of computing and `BYTES` of memory. (Windows has no
such limits; there the parent ends the process after a time.) Jinja runs in its own sandbox besides, without attributes
of Python.

The request is {"seconds": of computing; "vocabulary": text of a tokenizer.json, or null; "template": text, or null;
"names": of tokens; "conversations": [[messages, whether the model's turn follows], ...]}. Replies come a line each: one
when the vocabulary was used, one with the literals of the template and each conversation's {"text": ...} or
{"error": ...}.

It imports nothing of this package: that would load torch, and a start would take seconds.
"""

from __future__ import annotations

import json
import sys

SECONDS, BYTES = 5, 2 << 30
LONGEST = 1 << 20  # characters of a rendered conversation
MOST_TOKENS = 64  # for each byte of a text: a vocabulary that makes more of it is a trap
# Every printable byte, letters of other scripts, a run that slow patterns need very long for; and each letter often.
TEXT = "".join(map(chr, range(9, 127))) + " ÄÖ ß Ω Ж ไทย 漢字 ﬁ 😀 \n"
PROBES = (TEXT * 20 + "a" * 40 + "!", *(letter * 16 for letter in TEXT))


def limit(seconds: int) -> None:
    """Bound this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, BYTES)):
        hard = resource.getrlimit(what)[1]
        try:
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # macOS does not bound the memory
            pass


def try_vocabulary(text: str) -> str | None:
    """Why a vocabulary cannot be used, None where it can."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    for text in PROBES:
        ids = backend.encode(text, add_special_tokens=False).ids
        if max(len(ids), len(backend.decode(ids))) > MOST_TOKENS * len(text.encode()):
            return f"its rules make a text more than {MOST_TOKENS} times as long"
    return None


def environment():
    """Jinja as `transformers` sets it up for chat templates."""
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):  # a mark for training, without effect on the text
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: ""}
    return made


def render(template: str, names: dict, conversations: list) -> dict:
    """The template's literals, and what it makes of each conversation."""
    import jinja2

    jinja = environment()
    try:
        tree = jinja.parse(template)
        nodes = [*tree.find_all(jinja2.nodes.TemplateData), *tree.find_all(jinja2.nodes.Const)]
        made = jinja.from_string(template)
    except Exception as error:
        return {"literals": [], "texts": [{"error": line(error)}] * len(conversations)}
    literals = [getattr(node, "data", None) or getattr(node, "value", None) for node in nodes]
    texts = []
    for messages, answer_next in conversations:
        given = {"messages": messages, "add_generation_prompt": answer_next, "enable_thinking": False}
        try:
            text = made.render(**given, tools=None, documents=None, **names)
        except Exception as error:  # somebody else's program: whatever it does wrong is one line
            texts.append({"error": line(error)})
        else:
            texts.append({"text": text} if len(text) <= LONGEST else {"error": "it writes more than 1 MiB"})
    return {"literals": [text for text in literals if isinstance(text, str)], "texts": texts}


def line(error: BaseException) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__


def main() -> None:
    request = json.load(sys.stdin.buffer)
    limit(request["seconds"])
    if request["vocabulary"] is not None:
        try:
            failed = try_vocabulary(request["vocabulary"])
        except BaseException as error:  # the library panics outside of Exception
            failed = line(error)
        print(json.dumps(failed), flush=True)
    if request["template"] is not None:
        print(json.dumps(render(request["template"], request["names"], request["conversations"])), flush=True)


if __name__ == "__main__":
    main()
