"""What a worker sets before it trains, scores, generates or times."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

import forked
from lorastudy.engine.loading import BaseCache
from lorastudy.evaluation.evaluator import CompletionLoss
from lorastudy.protocol.jobs import EvaluateJob
from lorastudy.store import ExperimentTracker
from lorastudy.train import worker

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


def test_on_a_cpu_the_key_changes_nothing(tmp_path: Path) -> None:
    """The same experiments, in the same environment, to the same bits."""
    found, environments = [], []
    for deterministic in (True, False):
        suite = forked.tiny_suite(tmp_path / "suite", deterministic=deterministic)
        folder = tmp_path / str(deterministic)
        forked.run(suite, folder, executor=forked.InThisProcess(cache=suite.cache))
        found.append(forked.everything(folder))
        with ExperimentTracker(folder / "experiments.db") as tracker:
            results = tracker.get_all_experiments()
        environments.append({result.environment for result in results})
        found[-1]["ids"] = {result.experiment_id for result in results}
    assert found[0] == found[1]
    assert environments[0] == environments[1]
    (environment,) = environments[0]
    assert environment is not None
    assert environment.algorithms == "deterministic"


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_pack_trains_as_its_suite_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    told: list[bool] = []

    def noted(_: torch.device, *, deterministic: bool) -> AbstractContextManager[None]:
        told.append(deterministic)
        return nullcontext()

    monkeypatch.setattr(worker, "numerics", noted)
    forked.tiny_suite(tmp_path, deterministic=deterministic)  # which warms up in this process
    assert set(told) == {deterministic}


def test_all_attention_of_a_worker_uses_our_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, scoring and generation of a pack, and in the inference profile of its adapter."""
    suite = forked.tiny_suite(tmp_path / "suite")
    seen: dict[bool, set[tuple[object, ...]]] = {True: set(), False: set()}
    own = F.scaled_dot_product_attention

    def noted(*inputs: Any, **options: Any) -> torch.Tensor:
        first, second, third, *_ = map(SDPBackend, torch._C._get_sdp_priority_order())
        kernels = (first, second, third, torch.backends.cuda.cudnn_sdp_enabled())
        seen[torch.is_grad_enabled()].add(kernels)
        return own(*inputs, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    ours = {(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, False)}
    outcome = forked.run(suite, tmp_path, executor=forked.InThisProcess(cache=suite.cache))
    assert outcome.completed
    assert seen == {True: ours, False: ours}

    seen[False].clear()
    adapter = next((tmp_path / "output").glob("*/final_model"))
    job = EvaluateJob(
        checkpoints=(str(adapter),), base_model=suite.experiments[0].settings.base_model, quantization="fp32",
        dataset=None, benchmark=False, profile_inference=True, max_seq_length=32, max_samples=None,
        max_generation_samples=0, max_new_tokens=2,
    )  # fmt: skip
    folder = tmp_path / "job"
    folder.mkdir()
    job.write(folder)
    worker._serve_job(folder)
    assert '"error"' not in (folder / "result.json").read_text()
    assert seen[False] == ours


def test_a_worker_scores_the_base_once_for_all_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of two packs record the same scores of the base, and only the first one computes them."""
    suite = forked.tiny_suite(tmp_path / "suite", max_arms_per_pack=2)
    cold = BaseCache()
    splits: list[str] = []
    own = CompletionLoss.evaluate

    def noted(self: CompletionLoss, *args: Any, split: str, **options: Any) -> Any:
        splits.append(split)
        return own(self, *args, split=split, **options)

    monkeypatch.setattr(CompletionLoss, "evaluate", noted)
    outcome = forked.run(suite, tmp_path, executor=forked.InThisProcess(cache=cold))
    assert len(outcome.completed) == len(suite.experiments)
    assert splits.count("eval_before") == 1
    assert splits.count("eval") == 2
    with ExperimentTracker(tmp_path / "experiments.db") as tracker:
        scores = [result.scores["eval_before", "loss"] for result in tracker.get_all_experiments()]
    assert len(scores) == len(suite.experiments)
    assert len({score.value for score in scores}) == 1
