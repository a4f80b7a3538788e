"""Kinds of tokenizers and chat templates, each with an obvious twin of what must come of a row.

    python tests/token_kinds.py        measure every cell, and keep it as docs/tokenizers.json

The twin of a template is a Python function that writes the same text in pieces and says of each whether it is trained.
The twin of the borders reads the tokens' own spelling and walks along the text with it; it never asks for offsets.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lorastudy.data.load import to_example
from lorastudy.data.prompts import PromptStyle
from lorastudy.data.sources import Row
from lorastudy.data.tokenise import IGNORED, TokenRow, tokenise
from lorastudy.engine.chat_template import DATE, prompt_style
from lorastudy.errors import DataError
from tests.formatted import recognise

KEPT = Path(__file__).resolve().parents[1] / "docs" / "tokenizers.json"

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
Pieces = list[tuple[str, bool]]
Messages = list[dict[str, Any]]

# --- rows ---------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS: Messages = [
    {"role": "user", "content": "Name a color"},
    {"role": "assistant", "content": "The sky is blue."},
    {"role": "user", "content": "And one more?\nIn short"},
    {"role": "assistant", "content": "Grass  is green, été"},
]
CONVERSATIONS: list[Messages] = [
    TURNS,
    [SYSTEM, *TURNS],
    [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}],
]
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
CALLED: Messages = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "abc123", "type": "function", "function": CALL}],
    },
    {"role": "tool", "content": "mild", "tool_call_id": "abc123", "name": "weather"},
    {"role": "assistant", "content": "It is mild"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather"}}]
THOUGHT: Messages = [
    {"role": "user", "content": "What is 3 times 4?"},
    {"role": "assistant", "content": "12", "reasoning_content": "Three fours"},
    {"role": "user", "content": "And 3 plus 4?"},
    {"role": "assistant", "content": "7", "reasoning_content": "Three and four"},
]
#: Of each format: columns of its rows, and the messages that a chat model is to see.
PAIRS = [("Name a color", "The sky is blue."), ("Say hello", "Hello")]


def _sharegpt(messages: Messages) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}


def _asked(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row, and the conversation that it is."""

    values: Mapping[str, Any]
    messages: Messages
    tools: list[dict[str, Any]] | None = None


FORMATS: dict[str, list[Case]] = {
    "messages": [Case(values={"messages": messages}, messages=messages) for messages in CONVERSATIONS],
    "sharegpt": [Case(values=_sharegpt(messages), messages=messages) for messages in CONVERSATIONS],
    "alpaca": [Case(values={"instruction": q, "output": a}, messages=_asked(q, a)) for q, a in PAIRS],
    "prompt_completion": [
        Case(values={"prompt": q, "completion": a}, messages=_asked(q, a)) for q, a in PAIRS
    ],
    "text": [Case(values={"text": answer}, messages=[]) for _, answer in PAIRS],
}

# --- templates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template, its twin, and the rows of `messages` that it is for; `None` writes the plain layout."""

    source: str | None
    write: Callable[[Messages, Any], Pieces]
    extra: list[Case] = field(default_factory=list)


_EACH, _END = "{% for m in messages %}", "{% endfor %}"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CHATML = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"


def _turn_by_turn(turn: Callable[[dict[str, Any], bool], Pieces], before: str = "") -> Callable[..., Pieces]:
    """A twin that writes turn after turn; a turn is told whether it is the last."""

    def write(messages: Messages, _: Any) -> Pieces:
        return [(before, False)] + [piece for m in messages for piece in turn(m, m is messages[-1])]

    return write


def _chatml_turn(m: dict[str, Any], _: bool) -> Pieces:
    is_answer = m["role"] == "assistant"
    return [(f"<|im_start|>{m['role']}\n", False), (f"{m['content']}<|im_end|>", is_answer), ("\n", False)]


def _llama2(messages: Messages, _: Any) -> Pieces:
    pieces: Pieces = []
    system = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n" if messages[0]["role"] == "system" else ""
    for m in messages[bool(system) :]:
        if m["role"] == "user":
            pieces.append((f"{BOS}[INST] {system}{m['content']} [/INST]", False))
            system = ""
        else:
            pieces.append((f" {m['content']} {EOS}", True))
    return pieces


def _llama3(messages: Messages, _: Any) -> Pieces:
    head, given = "<|start_header_id|>{}<|end_header_id|>\n\n", messages[0]["role"] == "system"
    told = messages[0]["content"] if given else ""
    opening = f"{BOS}{head.format('system')}Today Date: 26 Jul 2024\n\n{told}<|eot_id|>"
    pieces: Pieces = [(opening, False)]
    for m in messages[given:]:
        pieces += [(head.format(m["role"]), False), (f"{m['content']}<|eot_id|>", m["role"] == "assistant")]
    return pieces


def _next_role(messages: Messages, _: Any) -> Pieces:
    pieces: Pieces = []
    for m in messages:
        after_answer = bool(pieces) and pieces[-1][1]
        pieces += [
            (f"<|{m['role']}|>", after_answer),
            ("\n", False),
            (m["content"], m["role"] == "assistant"),
        ]
    return pieces


def _opened_turn(m: dict[str, Any], _: bool) -> Pieces:
    end = EOS if m["role"] == "assistant" else ""
    return [(f"<|{m['role']}|>", False), (f"{m['content']}{end}", m["role"] == "assistant")]


def _thought_turn(m: dict[str, Any], is_last: bool) -> Pieces:
    """As Qwen3: what was thought stands before the last answer alone, and before it always."""
    thought = f"<think>\n{m.get('reasoning_content', '')}\n</think>\n\n" if is_last else ""
    is_answer = m["role"] == "assistant"
    text = f"{thought if is_answer else ''}{m['content']}<|im_end|>"
    return [(f"<|im_start|>{m['role']}\n", False), (text, is_answer), ("\n", False)]


def _tools(messages: Messages, tools: Any) -> Pieces:
    pieces: Pieces = []
    if tools:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        pieces.append((f"<|im_start|>system\n{listed}<|im_end|>\n", False))
    for m in messages:
        calls = "".join(f"<call>{json.dumps(call['function'])}" for call in m.get("tool_calls", ()))
        pieces += [
            (f"<|im_start|>{m['role']}\n", False),
            (f"{m['content']}{calls}<|im_end|>", m["role"] == "assistant"),
            ("\n", False),
        ]
    return pieces


def _ids(messages: Messages, _: Any) -> Pieces:
    pieces: Pieces = []
    for m in messages:
        if m.get("tool_calls"):
            call = m["tool_calls"][0]
            text = (
                f"<call id={call['id']}>{call['function']['name']}{json.dumps(call['function']['arguments'])}"
            )
        elif m["role"] == "tool":
            text = f"<result id={m['tool_call_id']}>{m['content']}"
        else:
            text = m["content"]
        pieces += [
            (f"<|im_start|>{m['role']}\n", False),
            (f"{text}<|im_end|>", m["role"] == "assistant"),
            ("\n", False),
        ]
    return pieces


def _plain(messages: Messages, _: Any) -> Pieces:
    pieces: Pieces = []
    for m in messages:
        is_answer = m["role"] == "assistant"
        pieces.append((f"### {m['role'].title()}:\n", False))
        end = EOS if is_answer and m is not messages[-1] else ""
        pieces += [(f"{m['content']}{end}", is_answer), ("\n\n", False)]
    return pieces


_CASE = Case(values={"messages": CALLED, "tools": TOOLS}, messages=CALLED, tools=TOOLS)
TEMPLATES: dict[str, Template] = {
    "chatml": Template(source=_EACH + _CHATML + _END + _ASK, write=_turn_by_turn(_chatml_turn)),
    "llama 2": Template(
        source=(
            "{% if messages[0].role == 'system' %}{% set told = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
            "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
            "{% for m in rest %}{% if m.role == 'user' %}"
            "{{ bos_token + '[INST] ' + (told if loop.first else '') + m.content + ' [/INST]' }}"
            "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
        ),
        write=_llama2,
    ),
    "llama 3, with the date": Template(
        source=(
            "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set told = messages[0].content %}"
            "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
            "{%- set today = strftime_now('%d %b %Y') %}"
            "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n' + told + '<|eot_id|>' }}"
            "{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}"
            "{%- endfor %}{%- if add_generation_prompt %}"
            "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
        ),
        write=_llama3,
    ),
    "next role ends": Template(
        source=_EACH
        + "{{ '<|' + m.role + '|>\n' + m.content }}"
        + _END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        write=_next_role,
    ),
    "thought in the last answer": Template(
        source=(
            _EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
            "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
            "{{ m.content + '<|im_end|>\n' }}" + _END + _ASK
        ),
        write=_turn_by_turn(_thought_turn),
        extra=[Case(values={"messages": THOUGHT}, messages=THOUGHT)],
    ),
    "prompt opens a thought": Template(
        source=(
            _EACH
            + "{{ '<|' + m.role + '|>' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
            + _END
            + "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
        ),
        write=_turn_by_turn(_opened_turn),
    ),
    "tools": Template(
        source=(
            "{%- if tools %}{{- '<|im_start|>system\n' }}{%- for t in tools %}{{- (t | tojson) + '\n' }}{%- endfor %}"
            "{{- '<|im_end|>\n' }}{%- endif %}{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}"
            "{%- for c in m.tool_calls or [] %}{{- '<call>' + (c.function | tojson) }}{%- endfor %}{{- '<|im_end|>\n' }}"
            "{%- endfor %}" + _ASK
        ),
        write=_tools,
        extra=[_CASE],
    ),
    "ids of calls": Template(
        source=(
            _EACH + "{{- '<|im_start|>' + m.role + '\n' }}{%- if m.tool_calls %}{%- for c in m.tool_calls %}"
            "{{- '<call id=' + c.id + '>' + c.function.name + (c.function.arguments | tojson) }}{%- endfor %}"
            "{%- elif m.role == 'tool' %}{{- '<result id=' + m.tool_call_id + '>' + m.content }}"
            "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\n' }}" + _END + _ASK
        ),
        write=_ids,
        extra=[Case(values={"messages": CALLED}, messages=CALLED)],
    ),
    "generation marks": Template(
        source=(
            _EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
            "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
            "{% endif %}{{ '\n' }}" + _END + _ASK
        ),
        write=_turn_by_turn(_chatml_turn),
    ),
    "none": Template(source=None, write=_plain),
}

# --- tokenizers -----------------------------------------------------------------------------------------------

_TEXTS = [
    piece
    for template in TEMPLATES.values()
    for case in (*FORMATS["messages"], *template.extra)
    for piece, _ in template.write(case.messages, case.tools)
] + [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Response: ### User: ### Assistant: ### System:",
]


def _special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _fast(
    inner: Tokenizer, trainer: Any, *, adds_bos: bool = False, marks: bool = True
) -> PreTrainedTokenizerFast:
    texts = [re.sub(r"<\|\w+\|>|</?s>", "", text) for text in _TEXTS]
    inner.train_from_iterator(texts * 4, trainer)
    if adds_bos:
        bos_id = inner.token_to_id(BOS)
        post = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
        inner.post_processor = (
            post if inner.post_processor is None else processors.Sequence([inner.post_processor, post])
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS, unk_token=UNK)
    if marks:
        tokenizer.add_special_tokens({"additional_special_tokens": [_special(mark) for mark in MARKS]})
    return tokenizer


_SPECIALS = [UNK, BOS, EOS]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level(*, trim: bool, adds_bos: bool) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    return _fast(inner, trainer, adds_bos=adds_bos)


def _metaspace(scheme: str, *, marks: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=_SPECIALS + _BYTES, show_progress=False)
    return _fast(inner, trainer, adds_bos=True, marks=marks)


def _normalised_sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's own file: the word mark is put in by a normaliser, and nothing splits before the merges."""
    inner = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=UNK))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=_SPECIALS + _BYTES, show_progress=False, max_token_length=8
    )
    return _fast(inner, trainer, adds_bos=True)


def _unigram() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=_SPECIALS, unk_token=UNK, show_progress=False
    )
    return _fast(inner, trainer)


def _wordpiece() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token=UNK))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=_SPECIALS, show_progress=False)
    return _fast(inner, trainer)


class WordsAndSigns(PreTrainedTokenizer):
    """A slow tokenizer, which does not say where its tokens stand: words, and single signs, white space too."""

    def __init__(self, **options: Any) -> None:
        words = sorted({word for text in _TEXTS for word in re.findall(r"\w+|\W", text)})
        self._vocabulary = {word: number for number, word in enumerate([*_SPECIALS, *words])}
        super().__init__(bos_token=BOS, eos_token=EOS, unk_token=UNK, **options)

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return re.findall(r"\w+|\W", text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocabulary.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._vocabulary)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def _slow() -> PreTrainedTokenizer:
    tokenizer = WordsAndSigns()
    tokenizer.add_special_tokens({"additional_special_tokens": [_special(mark) for mark in MARKS]})
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": lambda: _byte_level(trim=False, adds_bos=False),
    "byte-level BPE, trimmed offsets, BOS": lambda: _byte_level(trim=True, adds_bos=True),
    "word mark at the beginning": lambda: _metaspace("first"),
    "word mark before every text": lambda: _metaspace("always"),
    "word mark by a normaliser": _normalised_sentencepiece,
    "marks spelt out": lambda: _metaspace("first", marks=False),
    "Unigram": _unigram,
    "WordPiece": _wordpiece,
    "slow, without offsets": _slow,
}

# --- the twin of tokens and masks --------------------------------------------------------------------------------


def spelling(token: str, kind: str) -> str:
    """What a token stands for, as far as its own spelling says; bytes as characters of Latin-1."""
    if token in (*MARKS, *_SPECIALS):
        return token
    if kind.startswith("byte-level"):
        return bytes(_BYTE_OF[sign] for sign in token).decode("latin-1")
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return chr(int(token[3:5], 16))
    if kind == "WordPiece":
        token = token.removeprefix("##")
    return token.replace("▁", " ").encode().decode("latin-1")


def _byte_signs() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for signs from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_signs()


def walked_labels(ids: Sequence[int], pieces: Pieces, *, tokenizer: Any, kind: str) -> list[int]:
    """The labels of ids that spell the pieces, found by walking along the text token by token."""
    text = "".join(piece.lower() if kind == "WordPiece" else piece for piece, _ in pieces)
    spelt = text.encode().decode("latin-1")
    trained = [is_trained for piece, is_trained in pieces for _ in piece.encode()]
    labels, position = [], 0
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        told = spelling(token, kind)
        if not spelt.startswith(told, position):
            told = told.removeprefix(" ")  # a word mark that stands for no space
        while not spelt.startswith(told, position):
            assert spelt[position].isspace(), (token, spelt[position : position + 20])
            position += 1
        covered = trained[position : position + max(1, len(told))]
        labels.append(token_id if any(covered) else IGNORED)
        position += len(told)
    assert not spelt[position:].strip()
    return labels


class _ThatDay:
    """In the place of `datetime`, where transformers asks for today."""

    @staticmethod
    def now() -> Any:
        return DATE


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What must come of a row."""

    ids: list[int]
    labels: list[int]


def wanted(case: Case, *, template: Template, tokenizer: Any, kind: str, fmt: str) -> Wanted:
    """Ids by transformers itself, labels by the twins; what follows the last answer's end is left away, EOS comes last."""
    eos = tokenizer.eos_token_id
    if template.source is None or fmt == "text":
        pieces, ids = _without_template(case, fmt=fmt, tokenizer=tokenizer, template=template)
    else:
        pieces = template.write(case.messages, case.tools)
        if kind == "marks spelt out":  # then the mark of the next role is ordinary text, and ends nothing
            pieces = [(piece, is_trained and piece not in MARKS) for piece, is_trained in pieces]
        whole = tokenizer.apply_chat_template(
            case.messages, tools=case.tools, tokenize=True, return_dict=False
        )
        assert tokenizer.apply_chat_template(case.messages, tools=case.tools, tokenize=False) == "".join(
            piece for piece, _ in pieces
        ), "the twin writes another text"
        ids = list(whole)
    num_front = 1 if ids[:1] == [tokenizer.bos_token_id] and not pieces[0][0].startswith(BOS) else 0
    labels = [IGNORED] * num_front + walked_labels(ids[num_front:], pieces, tokenizer=tokenizer, kind=kind)
    while labels[-1] == IGNORED:
        ids, labels = ids[:-1], labels[:-1]
    if ids[-1] != eos:
        ids, labels = [*ids, eos], [*labels, eos]
    labels[0] = IGNORED
    return Wanted(ids=ids, labels=labels)


def _without_template(
    case: Case, *, fmt: str, tokenizer: Any, template: Template
) -> tuple[Pieces, list[int]]:
    if fmt == "text":
        pieces: Pieces = [(case.values["text"], True)]
    elif fmt == "alpaca":
        prompt = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{case.values['instruction']}\n\n### Response:\n"
        )
        pieces = [(prompt, False), (case.values["output"], True)]
    elif fmt == "prompt_completion":
        pieces = [(case.values["prompt"], False), (case.values["completion"], True)]
    else:
        pieces = template.write(case.messages, case.tools)[:-1]  # nothing stands after the last answer
    text = "".join(piece for piece, _ in pieces)
    return pieces, list(tokenizer(text)["input_ids"])


# --- measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How the rows of one format fare under one template with one tokenizer."""

    num_rows: int
    num_ids_equal: int
    num_labels_equal: int
    refused: str | None = None


def measured(kind: str, template_name: str, fmt: str) -> Cell:
    """Tokenise the rows as a run does, and compare them with what must come of them."""
    template, tokenizer = TEMPLATES[template_name], KINDS[kind]()
    tokenizer.chat_template = template.source
    cases = [*FORMATS[fmt], *(template.extra if fmt == "messages" else ())]
    rows = [Row(values=case.values, where=f"f:{number}") for number, case in enumerate(cases)]
    try:
        found = list(_tokenised(rows, tokenizer=tokenizer, style=prompt_style(tokenizer, "auto")))
    except DataError as error:
        return Cell(num_rows=len(rows), num_ids_equal=0, num_labels_equal=0, refused=str(error))
    today, chat_template_utils.datetime = chat_template_utils.datetime, _ThatDay
    try:
        due = [wanted(case, template=template, tokenizer=tokenizer, kind=kind, fmt=fmt) for case in cases]
    finally:
        chat_template_utils.datetime = today
    return Cell(
        num_rows=len(rows),
        num_ids_equal=sum(list(row.input_ids) == one.ids for row, one in zip(found, due, strict=True)),
        num_labels_equal=sum(list(row.labels) == one.labels for row, one in zip(found, due, strict=True)),
    )


def _tokenised(rows: Sequence[Row], *, tokenizer: Any, style: PromptStyle) -> Iterator[TokenRow]:
    for row in rows:  # one by one: tools stand in some rows only
        examples = [to_example(row, recognise([row]), style=style)]
        yield from tokenise(examples, tokenizer=tokenizer, max_seq_length=4096, split="train").rows


def table() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Kind -> template -> format -> [rows, with equal ids, with equal labels]; no numbers where rows are refused."""
    return {
        kind: {name: {fmt: _counts(measured(kind, name, fmt)) for fmt in FORMATS} for name in TEMPLATES}
        for kind in KINDS
    }


def _counts(cell: Cell) -> list[int]:
    return [] if cell.refused else [cell.num_rows, cell.num_ids_equal, cell.num_labels_equal]


if __name__ == "__main__":
    KEPT.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
