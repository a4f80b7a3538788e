"""Answers to what a plan asks of a worker: shapes, footprints, rows, pace. Plain JSON values out."""

import json
import math
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lorastudy.data.batches import steps_of
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import Reach, token_sets
from lorastudy.data.tokenise import TokenSet
from lorastudy.data.trivial import trivial_scores
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.choice import foreseen_problem
from lorastudy.engine.environment import environment
from lorastudy.engine.feed import make_feed
from lorastudy.engine.footprints import LossGrowths, footprint
from lorastudy.engine.hollow import decoder_layers, meta_model, quantised_names, read_config
from lorastudy.engine.loading import (
    check_rows,
    default_device,
    load_tokenizer,
    local_folder,
    num_embeddings,
    num_positions,
)
from lorastudy.engine.pace import step_seconds
from lorastudy.engine.probe import attention_span
from lorastudy.engine.targets import target_layers
from lorastudy.errors import FOREIGN_ERRORS, DataError, StudyError, first_line
from lorastudy.jobs import (
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    PaceQuestion,
    Question,
    RowsQuestion,
    read_questions,
)
from lorastudy.records import RowsRead, TrivialScore
from lorastudy.spec.settings import Settings

#: Of the rows, that a length is named for which keeps them whole: the longest may be an outlier that memory is not worth.
MOST_ROWS = 0.95


def answer(questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers, in the order of the questions."""
    device, growths = default_device(), LossGrowths()
    return {
        "answers": [_answered(each, device=device, growths=growths) for each in read_questions(questions)]
    }


def _answered(question: Question, *, device: torch.device, growths: LossGrowths) -> dict[str, Any]:
    """The answer, or a `problem` in one sentence: what cannot be answered keeps nobody from the other answers."""
    try:
        return _answer(question, device=device, growths=growths)
    except StudyError as error:
        return {"problem": str(error), "is_of_data": isinstance(error, DataError)}
    except FOREIGN_ERRORS as error:  # the job's edge: code of any model runs here on tensors of no content
        traceback.print_exc()
        told = f"{type(error).__name__}: {first_line(error)}"
        return {"problem": f"a step of it cannot be counted on tensors without content ({told})"}


def _answer(question: Question, *, device: torch.device, growths: LossGrowths) -> dict[str, Any]:
    if isinstance(question, MachineQuestion):
        return _machine(device)
    if isinstance(question, ModelQuestion):
        return _shape(question)
    if isinstance(question, FootprintQuestion):
        return footprint(question, device=device, growths=growths).to_json()
    if isinstance(question, RowsQuestion):
        return _rows(question)
    assert isinstance(question, PaceQuestion)
    return step_seconds(question, device=device)


def _machine(device: torch.device) -> dict[str, Any]:
    now = environment(device)
    is_cuda = device.type == "cuda"
    properties: Any = torch.cuda.get_device_properties(device) if is_cuda else None
    return {
        "device": device.type,
        "device_name": now.device_name,
        "num_threads": now.num_threads,
        "memory_bytes": properties.total_memory if is_cuda else None,
        "compute_capability": properties.major if is_cuda else None,
    }


def _shape(question: ModelQuestion) -> dict[str, Any]:
    config = read_config(question.folder, trust_remote_code=question.trust_remote_code)
    model = meta_model(config, trust_remote_code=question.trust_remote_code)
    text: Any = config.get_text_config()
    layers, quantised = decoder_layers(model), quantised_names(model)
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    return {
        "model_type": config.model_type,
        "linear_layers": [
            {**asdict(layer), "is_quantisable": layer.name in quantised} for layer in target_layers(model)
        ],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_tensors": len(list(model.parameters())),
        "buffer_bytes": sum(buffer.nbytes for buffer in model.buffers()),
        "hidden_size": getattr(text, "hidden_size", None),
        "num_layers": len(layers[1]) if layers else getattr(text, "num_hidden_layers", None),
        "num_attention_heads": getattr(text, "num_attention_heads", None),
        "num_key_value_heads": getattr(text, "num_key_value_heads", None),
        "vocab_size": getattr(text, "vocab_size", None),
        "max_position_embeddings": num_positions(config),
        "attention_span": attention_span(config),
        "packed_problem": foreseen_problem(config, trust_remote_code=question.trust_remote_code),
        "has_tied_head": head is not None and embedding is not None and head.weight is embedding.weight,
        **_layer_parameters(model),
    }


def _layer_parameters(model: PreTrainedModel) -> dict[str, Any]:
    found = decoder_layers(model)
    return {"num_layer_parameters": sum(p.numel() for p in found[1].parameters()) if found else None}


def _rows(question: RowsQuestion) -> dict[str, Any]:
    """By order of the rows the largest micro-batch and a step's mean tokens; and what becomes of the rows of each split."""
    settings = Settings.model_validate_json(json.dumps(question.settings))
    tokenizer = load_tokenizer(settings.base_model, trust_remote_code=settings.trust_remote_code)
    study = train_and_eval(settings, style=prompt_style(tokenizer, settings.prompt_format))
    reach = Reach.of(
        settings, max_steps=[steps for steps, _ in question.lengths], data_seeds=question.data_seeds
    )
    # All of them, though only training is asked about: what a run would refuse is refused here.
    sets = token_sets(study, settings, tokenizer=tokenizer, reach=reach)
    config = read_config(
        local_folder(settings.base_model, with_code=settings.trust_remote_code),
        trust_remote_code=settings.trust_remote_code,
    )
    for tokens in sets.values():
        check_rows(tokens.rows, config=config, base_model=settings.base_model, tokenizer=tokenizer)
    trivial = list(
        trivial_scores(sets, settings, vocab_size=num_embeddings(config), num_positions=num_positions(config))
    )
    train = sets["train"]
    num_rows = len(train.rows)
    num_steps = max(
        steps_of(
            settings.model_copy(update={"max_steps": steps, "num_train_epochs": epochs}), num_rows=num_rows
        )
        for steps, epochs in question.lengths
    )
    return {
        "orders": [
            _order(train, settings, data_seed=seed, num_steps=num_steps) for seed in question.data_seeds
        ],
        "num_steps": num_steps,
        "num_rows": num_rows,
        "longest_row": max(len(row.input_ids) for tokens in sets.values() for row in tokens.rows),
        "splits": [asdict(_read(tokens, trivial=trivial)) for tokens in sets.values()],
    }


def _order(train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int) -> dict[str, Any]:
    """The micro-batch of the most tokens in one order of the rows, and the mean tokens of a step."""
    feed = make_feed(train, settings, data_seed=data_seed, num_steps=num_steps, device=torch.device("cpu"))
    lengths = [len(row.input_ids) for row in train.rows]
    largest = max(
        (batch for step in feed.plan for batch in step), key=lambda rows: sum(lengths[row] for row in rows)
    )
    num_tokens = sum(lengths[row] for step in feed.plan for batch in step for row in batch)
    return {
        "row_lengths": sorted(lengths[row] for row in largest),
        "num_labels": sum(train.rows[row].num_completion_tokens for row in largest),
        "mean_tokens_per_step": num_tokens / num_steps,
    }


def _read(tokens: TokenSet, *, trivial: Sequence[TrivialScore]) -> RowsRead:
    lengths = sorted(tokens.whole_lengths)
    most = lengths[math.ceil(MOST_ROWS * len(lengths)) - 1]
    return RowsRead(
        summary=tokens.summary,
        trivial=tuple(
            replace(score, items=(), weights=None) for score in trivial if score.split == tokens.summary.split
        ),
        length_of_all=lengths[-1],
        length_of_most=most,
    )
