"""A question is asked once; what an answer depends on asks it anew."""

from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.places import cache_folder
from lorastudy.planning.answers import Answers, config_digest
from lorastudy.planning.memory import config_folder
from lorastudy.protocol.jobs import (
    CountedArm,
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    Precision,
    RowsQuestion,
    as_json,
    read_questions,
)


class Worker:
    """Answers with the number of the question."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        self.jobs.append(job)
        return {"answers": [{"number": number} for number, _ in enumerate(job.questions)]}


def test_what_cannot_be_answered_keeps_nobody_from_the_other_answers(tmp_path):
    asked = []

    def ask(job):
        asked.append(len(job.questions))
        return {
            "answers": [
                {"problem": "it has no such layer"} if isinstance(question, ModelQuestion) else {"number": 1}
                for question in job.questions
            ]
        }

    answers = Answers(ask, folder=tmp_path)
    model = ModelQuestion(folder="a")
    answers.fetch([(model, "hash"), (MachineQuestion(), "")], base_model="a")
    assert answers.get(MachineQuestion(), "", base_model="a") == {"number": 1}
    for _ in range(2):
        with pytest.raises(ModelError, match="it has no such layer"):
            answers.get(model, "hash", base_model="a")
    assert asked == [2]  # asked once in this process, and by the next one again
    assert Answers(ask, folder=tmp_path).kept(model, "hash") is None


def test_a_question_is_asked_once_and_kept_on_disk(tmp_path: Path):
    worker = Worker()
    questions = [(MachineQuestion(), ""), (ModelQuestion(folder="a"), "hash")]
    for _ in range(2):
        answers = Answers(worker, folder=tmp_path)
        answers.fetch(questions, base_model="a")
        told = [answers.get(question, about, base_model="a") for question, about in questions]
        assert told == [{"number": 0}, {"number": 1}]
    assert len(worker.jobs) == 1


def test_only_what_is_missing_is_asked(tmp_path: Path):
    worker = Worker()
    answers = Answers(worker, folder=tmp_path)
    answers.fetch([(MachineQuestion(), "")], base_model="a")
    answers.fetch([(MachineQuestion(), ""), (ModelQuestion(folder="a"), "hash")], base_model="a")
    assert [len(job.questions) for job in worker.jobs] == [1, 1]
    assert isinstance(worker.jobs[1].questions[0], ModelQuestion)


def test_another_configuration_is_another_question_and_another_folder_is_not(tmp_path: Path):
    worker = Worker()
    answers = Answers(worker, folder=tmp_path)
    for folder, about in (("a", "hash"), ("b", "hash"), ("a", "other hash")):
        answers.get(ModelQuestion(folder=folder), about, base_model="a")
    assert len(worker.jobs) == 2


def test_a_torn_answer_is_asked_again(tmp_path: Path):
    worker = Worker()
    Answers(worker, folder=tmp_path).get(MachineQuestion(), "", base_model="a")
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"numb')
    assert Answers(worker, folder=tmp_path).get(MachineQuestion(), "", base_model="a") == {"number": 0}
    assert len(worker.jobs) == 2


def test_a_cache_that_cannot_be_written_costs_the_next_plan_its_question(tmp_path: Path):
    worker = Worker()
    (tmp_path / "file").touch()
    answers = Answers(worker, folder=tmp_path / "file" / "plans")
    for _ in range(2):
        assert answers.get(MachineQuestion(), "", base_model="a") == {"number": 0}
    assert len(worker.jobs) == 1


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("plans") == tmp_path / "lorastudy" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("plans") == tmp_path / ".cache" / "lorastudy" / "plans"


def test_the_digest_follows_the_configuration(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    first = config_digest(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "phi"}')
    assert config_digest(str(tmp_path)) != first


def test_a_folder_without_configuration_and_a_model_that_is_not_here_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ModelError, match="holds no config"):
        config_folder(str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"hf download some/model config\.json"):
        config_folder("some/model")


def test_a_model_fetched_before_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    assert config_folder("some/model") == cached / "snapshots" / "abc"


def test_questions_survive_json():
    questions = [
        MachineQuestion(),
        ModelQuestion(folder="a", trust_remote_code=True),
        FootprintQuestion(
            engine="packed", device_kind="cuda", folder="a", precision=Precision(quantization="4bit"),
            arms=(CountedArm(r=4, targets=("qv", None)), CountedArm(r=8, targets=(("q_proj",), (0, 1)), has_dropout=True)),
            gradient_checkpointing=True, row_lengths=(8, 9), num_labels=5,
        ),
        RowsQuestion(settings={"lora_rank": 4}, lengths=((10, None), (None, 1.5)), data_seeds=(0, 3)),
    ]  # fmt: skip
    assert read_questions([as_json(question) for question in questions]) == questions
