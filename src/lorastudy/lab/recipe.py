"""Rebuilds the lab's base model: `python -m lorastudy.lab.recipe`.

A Llama of a third of a million parameters trains from scratch on the known people and the taught skills until it
recalls every fact, which takes about two minutes on two cores. Everything is seeded, but the bits of the weights also
depend on the machine and the library versions, so the package contains the weights themselves.

This is the one module of the lab that needs torch and transformers.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorastudy.lab import base_folder
from lorastudy.lab.catalogue import (
    KNOWN,
    RELATIONS,
    Row,
    biography_row,
    held_out_rows,
    reversal_rows,
    seeded,
    taught_rows,
)

SEED = 0
MAX_LENGTH = 512
_SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of the pre-training. With the defaults the model recalls every known person's facts."""

    num_epochs: int = 24
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.01


def main() -> None:
    """Rebuild the base model and print what it recalls."""
    parser = argparse.ArgumentParser(description="Rebuild the lab's base model.")
    parser.add_argument("--folder", type=Path, default=base_folder(), help="where to write it")
    folder = parser.parse_args().folder
    rows = pretraining_rows()
    tokenizer = build_tokenizer(rows)
    model = build_model(tokenizer)
    train(model, encode(rows, tokenizer=tokenizer), training=Training())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} words, written to {folder}")
    print(f"recall of {len(KNOWN)} people: {recall(model, tokenizer, rows=list(held_out_rows(KNOWN))):.3f}")


def pretraining_rows() -> list[Row]:
    """Every known fact in every phrasing, two biographies of each known person, and the taught skills."""
    rng = seeded("pre-training")
    facts = [
        {"prompt": prompt.format(person=person.name), "completion": answer}
        for person in KNOWN
        for relation, answer in zip(RELATIONS, person.answers, strict=True)
        for prompt in relation.all_prompts
    ]
    biographies = [biography_row(person, rng=rng) for person in KNOWN for _ in range(2)]
    return [*facts, *biographies, *taught_rows(1500, rng=rng)]


def build_tokenizer(rows: Sequence[Row]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and punctuation marks. Every answer is one or two tokens.

    Encoding adds no special token. Decoding puts spaces between words and none before `.` and `?`, so it restores the
    lab's rows exactly. It is WordPiece's decoder with a prefix that no word has.
    """
    splitter = pre_tokenizers.Whitespace()
    texts = (text for row in [*rows, *reversal_rows(held_out=False)] for text in row.values())
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL_TOKENS, *words])}
    pad, eos, unk = _SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        padding_side="right",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model. It is small so that facts compete for capacity, both in the model and in an adapter."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def encode(rows: Sequence[Row], *, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of prompt, completion and end mark. Prompt and completion are tokenised separately."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    completions = tokenizer([row["completion"] for row in rows])["input_ids"]
    return [[*p, *c, tokenizer.eos_token_id] for p, c in zip(prompts, completions, strict=True)]


def train(model: LlamaForCausalLM, sequences: Sequence[list[int]], *, training: Training) -> None:
    """Next-token prediction on all tokens: AdamW, linear warm-up, then a cosine down to zero."""
    rng = seeded("batches")
    num_steps = training.num_epochs * -(-len(sequences) // training.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.learning_rate, total_steps=num_steps, pct_start=training.warmup_share,
        cycle_momentum=False,
    )  # fmt: skip
    model.train()
    for epoch in range(training.num_epochs):
        loss_sum = torch.zeros(())
        batches = list(_batches(sequences, batch_size=training.batch_size, rng=rng))
        for input_ids, labels in batches:
            # Padding comes last and attention is causal: no word sees it, so no mask is needed.
            loss = model(input_ids=input_ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach()
        print(
            f"epoch {epoch + 1}/{training.num_epochs}: loss {loss_sum.item() / len(batches):.3f}", flush=True
        )


def _batches(
    sequences: Sequence[list[int]], *, batch_size: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every sequence once, in batches of similar lengths: a biography is five times as long as a question."""
    order = rng.sample(range(len(sequences)), len(sequences))
    order.sort(key=lambda index: len(sequences[index]))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(sequences[index]) for index in group)
        labels = torch.tensor(
            [sequences[index] + [_IGNORED] * (longest - len(sequences[index])) for index in group]
        )
        yield labels.clamp(min=0), labels


@torch.no_grad()
def recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, rows: Sequence[Row]) -> float:
    """The share of rows whose greedy answer is the completion, word for word."""
    model.eval()
    num_right = 0
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        batch = tokenizer(
            [row["prompt"] for row in part], return_tensors="pt", padding=True, padding_side="left"
        )
        generated = model.generate(**batch, max_new_tokens=8)[:, batch["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(generated, skip_special_tokens=True)
        num_right += sum(
            answer.strip() == row["completion"] for answer, row in zip(answers, part, strict=True)
        )
    return num_right / len(rows)


if __name__ == "__main__":
    main()
