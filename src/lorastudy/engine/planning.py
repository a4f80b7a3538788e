"""A worker's answers to a plan's questions, as plain JSON values. `rows` has the answers about rows."""

import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from lorastudy.engine.choice import packed_problem
from lorastudy.engine.environment import environment
from lorastudy.engine.fake_model import FakeModels, counted_arms, decoder_layers, quantised_names
from lorastudy.engine.loading import default_device, num_positions
from lorastudy.engine.memory_trace import footprint
from lorastudy.engine.rows import rows_previewed, rows_read
from lorastudy.engine.self_check import attention_span, has_sliding_windows
from lorastudy.engine.step_timing import step_seconds
from lorastudy.engine.targets import target_layers
from lorastudy.errors import FOREIGN_ERRORS, DataError, StudyError, first_line
from lorastudy.protocol.jobs import (
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    PaceQuestion,
    PreviewQuestion,
    Question,
    RowsQuestion,
    SizeQuestion,
    read_questions,
)


def answer(questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers, in the order of the questions."""
    device, models = default_device(), FakeModels()
    return {
        "answers": [
            _answered(question, device=device, models=models) for question in read_questions(questions)
        ]
    }


def _answered(question: Question, *, device: torch.device, models: FakeModels) -> dict[str, Any]:
    """The answer, or a `problem` in one sentence, so that one failing question does not prevent other answers."""
    try:
        return _answer(question, device=device, models=models)
    except StudyError as error:
        return {"problem": str(error), "is_of_data": isinstance(error, DataError)}
    except FOREIGN_ERRORS as error:  # the job's edge: code of any model runs here on tensors of no content
        traceback.print_exc()
        told = f"{type(error).__name__}: {first_line(error)}"
        return {"problem": f"a step of it cannot be counted on tensors without content ({told})"}


def _answer(question: Question, *, device: torch.device, models: FakeModels) -> dict[str, Any]:
    if isinstance(question, MachineQuestion):
        return _machine(device)
    if isinstance(question, ModelQuestion | SizeQuestion | FootprintQuestion):
        return _of_fake_model(question, models=models)
    if isinstance(question, RowsQuestion):
        return rows_read(question)
    if isinstance(question, PreviewQuestion):
        return rows_previewed(question)
    assert isinstance(question, PaceQuestion)
    return step_seconds(question, device=device)


def _of_fake_model(
    question: ModelQuestion | SizeQuestion | FootprintQuestion, *, models: FakeModels
) -> dict[str, Any]:
    """The answer to a question about a model, for which no weights are read."""
    if isinstance(question, ModelQuestion):
        return _shape(question, models=models)
    if isinstance(question, SizeQuestion):
        return _size(question, models=models)
    return footprint(question, models=models).to_json()


def _machine(device: torch.device) -> dict[str, Any]:
    now = environment(device)
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": now.device_name,
        "num_threads": now.num_threads,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if is_cuda else None,
    }


def _shape(question: ModelQuestion, *, models: FakeModels) -> dict[str, Any]:
    config = models.config(question.folder, trust_remote_code=question.trust_remote_code)
    model = models.meta(question.folder, trust_remote_code=question.trust_remote_code)
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
        "has_sliding_windows": has_sliding_windows(config),
        "packed_problem": packed_problem(config, trust_remote_code=question.trust_remote_code),
        "has_tied_head": head is not None and embedding is not None and head.weight is embedding.weight,
        **_layer_parameters(model),
    }


def _size(question: SizeQuestion, *, models: FakeModels) -> dict[str, Any]:
    from lorastudy.engine.peft_model import counted_size  # imports PEFT, which takes a second

    base = models.base(
        question.folder, question.precision, num_layers=None, trust_remote_code=question.trust_remote_code
    )
    (arm,) = counted_arms(question.arms, layers=base.target_layers)
    return asdict(counted_size(arm, base=base))


def _layer_parameters(model: PreTrainedModel) -> dict[str, Any]:
    found = decoder_layers(model)
    return {"num_layer_parameters": sum(p.numel() for p in found[1].parameters()) if found else None}
