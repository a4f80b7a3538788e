"""The recommendation for a request, from the studies in the store and the predicted cost of each configuration."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorastudy.analysis.overview import stored_items
from lorastudy.data.batches import steps_of
from lorastudy.errors import ModelError, StudyError
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import (
    Estimator,
    Machine,
    MemoryBudget,
    PackEstimate,
    precision_of,
    prepare,
)
from lorastudy.planning.literature import (
    EFFECTIVE_BATCH,
    RULES,
    LiteratureRule,
    family_power,
    layouts,
    literature_settings,
)
from lorastudy.planning.memory import ModelShape, base_weight_bytes, config_folder, quantisation_bytes
from lorastudy.planning.predictions import use_stored_times
from lorastudy.planning.recommendation_request import (
    RecommendationRequest,
    for_a_reader,
    judged_by,
    shown_settings,
)
from lorastudy.planning.study_plan import plan_configurations
from lorastudy.planning.suite_facts import check_rows, num_completion_tokens
from lorastudy.recommend.decision import ArmDecision
from lorastudy.recommend.recommendation import Candidate, Evidence, Recommendation, recommend
from lorastudy.report.findings.recommendation import because
from lorastudy.report.numbers import size
from lorastudy.stats.study import Study, StudyArm, differing_settings, reporting_split, split_studies
from lorastudy.stats.summary import summarise_arm
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.rate_search import as_shown
from lorastudy.suite.settings import Settings

#: The parts of a decision that name several arms.
_SEVERAL_ARMS = ("peers", "left_out", "harmed", "not_helped", "no_better_than_guessing")


@dataclass(frozen=True, kw_only=True)
class AnsweredRequest:
    """A recommendation with the request that it answers."""

    request: RecommendationRequest
    recommendation: Recommendation
    device: str
    """The device on which memory was counted."""

    @property
    def because(self) -> tuple[str, ...]:
        """The reasons for the recommendation, a sentence each."""
        return tuple(because(self.recommendation))

    @property
    def rules(self) -> Mapping[str, LiteratureRule]:
        """The published rules that were followed. A precision that the user chose follows no rule."""
        if self.recommendation.grade != "literature only":
            return {}
        is_chosen = "quantization" in self.request.fixed
        return {key: rule for key, rule in RULES.items() if key != "precision" or not is_chosen}

    @property
    def _names(self) -> Mapping[str, str]:
        """The names of the study's arms by their labels."""
        analysis = self.recommendation.analysis
        return {} if analysis is None else {arm.name: arm.given_name for arm in analysis.study.arms}

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values. Arms have their names, and beside these their labels."""
        answer = self.recommendation
        runner_up, names = answer.runner_up, self._names
        return {
            "grade": answer.grade,
            "recommended": answer.is_recommended,
            "decision": None if answer.decision is None else decision_json(answer.decision, names),
            "name": names.get(answer.name, answer.name),
            "label": answer.name,
            **_candidate_json(answer.candidate),
            "budget_bytes": self.request.budget_bytes,
            "device": self.device,
            "because": list(self.because),
            "unlike_suite": list(self.request.unlike_suite(answer.candidate.settings)),
            "expected": None if answer.expectation is None else asdict(answer.expectation),
            "runner_up": runner_up
            and {
                "name": names.get(runner_up.name, runner_up.name),
                "label": runner_up.name,
                "standing": runner_up.standing,
                **_candidate_json(runner_up.candidate),
            },
            "open": list(answer.open),
            "caveats": list(answer.caveats),
            "other_studies": list(answer.other_studies),
            "left_out": list(answer.left_out),
            "rules": {key: asdict(rule) for key, rule in self.rules.items()},
        }


def decision_json(decision: ArmDecision, names: Mapping[str, str]) -> dict[str, Any]:
    """The decision with the name of each arm in place of its label; every other value stays, even if it equals a label."""
    several = {key: [names.get(arm, arm) for arm in getattr(decision, key)] for key in _SEVERAL_ARMS}
    arm = None if decision.arm is None else names.get(decision.arm, decision.arm)
    return {**asdict(decision), "arm": arm, **several}


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "settings": shown_settings(candidate.settings),
        "peak_bytes": candidate.peak_bytes,
        "terms_bytes": dict(candidate.terms_bytes),
        "num_trainable_parameters": candidate.num_trainable_parameters,
        "train_seconds": candidate.train_seconds,
        "time_from": candidate.time_from,
    }


def answer_request(
    request: RecommendationRequest,
    answers: Answers,
    *,
    tracker: ExperimentTracker | None,
    budget: MemoryBudget,
    hours: float | None = None,
) -> AnsweredRequest:
    """The configuration to use, from the store's evidence if there is any, else from published rules.

    Without `tracker` there is no evidence. A configuration that is known to train longer than `hours` does not fit.

    Raises:
        DataError: the rows cannot be used with the base model's tokenizer.
        StudyError: no configuration fits; the message says what would.
    """
    finder = CandidateFinder(
        answers, request, stored=() if tracker is None else tracker.get_all_experiments()
    )
    finder.check_data()
    answer = _recommendation(
        finder, request, tracker=tracker, max_seconds=None if hours is None else 3600 * hours
    )
    if answer is None:
        raise StudyError(_nothing_fits(finder, request, budget=budget, hours=hours))
    return AnsweredRequest(request=request, recommendation=answer, device=finder.device)


def _recommendation(
    finder: "CandidateFinder",
    request: RecommendationRequest,
    *,
    tracker: ExperimentTracker | None,
    max_seconds: float | None,
) -> Recommendation | None:
    """The recommendation from the store, else from published rules; None if no configuration fits."""
    evidence = [] if tracker is None else list(stored_evidence(tracker, finder, request=request))
    measured = recommend(evidence, (), budget_bytes=request.budget_bytes, max_seconds=max_seconds)
    if measured is not None:
        return measured
    published = recommend(
        evidence,
        literature_candidates(finder, request),
        budget_bytes=request.budget_bytes,
        max_seconds=max_seconds,
    )
    if published is None or tracker is None:
        return published
    return replace(published, left_out=(*published.left_out, *silent_suites(tracker, request)))


def _nothing_fits(
    finder: "CandidateFinder", request: RecommendationRequest, *, budget: MemoryBudget, hours: float | None
) -> str:
    """Why no configuration fits, and what would."""
    least, memory = finder.smallest, budget.words
    if least is None:
        weights = finder.least_weights_bytes
        return (
            f"--vram: {memory}: nothing fits. The weights of {request.base.base_model} alone take {size(weights)} in "
            f"{finder.least_precision}. "
            f"What would fit: more than {budget.needed(weights)} of memory, or a smaller model"
        )
    if least.peak_bytes <= request.budget_bytes:
        return (
            f"--hours: {hours:g}: everything that fits {memory} is known to take longer. "
            "Give more hours, or fewer rows or steps"
        )
    settings = least.settings
    return (
        f"--vram: {memory}: nothing fits. The smallest configuration tried (rank {settings.lora_rank} on "
        f"{settings.target_modules}, {settings.quantization}, {settings.per_device_train_batch_size} row(s) of "
        f"{settings.max_seq_length} tokens, with recomputation) needs {size(least.peak_bytes)} by its prediction. "
        f"What would fit: {budget.needed(least.peak_bytes)} or more of memory, a smaller model, or a smaller "
        "--max-seq-length"
    )


class CandidateFinder:
    """Finds layouts of configurations that fit the budget. Counts steps only where the base model itself fits."""

    def __init__(
        self, answers: Answers, request: RecommendationRequest, *, stored: Sequence[ExperimentResult] = ()
    ) -> None:
        """`answers` ask a worker for every answer that is not cached. Times follow from the `stored` runs."""
        self._answers, self._request, self._stored = answers, request, stored
        self.smallest: Candidate | None = None
        """The candidate with the lowest peak memory of all that were tried."""

    @cached_property
    def shape(self) -> ModelShape:
        """The base model's shape."""
        return self._estimator(self._request.base).shape

    @property
    def device(self) -> str:
        """The device on which steps are counted."""
        return self._estimator(self._request.base).machine.device

    @property
    def least_precision(self) -> str:
        """The precision in which the base is smallest: the requested one, else 4 bits."""
        return str(self._request.fixed.get("quantization", "4bit"))

    @property
    def least_weights_bytes(self) -> int:
        """Bytes of the base model in `least_precision`, before anything is trained."""
        return self._weights_bytes(
            self._request.base.model_copy(update={"quantization": self.least_precision})
        )

    def fitting(self, settings: Settings, *, departures: tuple[str, ...] = ()) -> Candidate | None:
        """The first layout of the settings that is predicted to fit; None if none is.

        If the base model alone exceeds the budget, no step is counted.
        """
        if self._weights_bytes(settings) > self._request.budget_bytes:
            return None
        for layout in layouts(settings):
            estimator = self._estimator(layout)
            try:
                prepare([estimator], self._answers)
                candidate = _candidate(layout, estimator.estimate(), departures=departures)
            except ModelError as error:
                if "target_modules" in str(error):  # the model has no such role
                    return None
                raise
            if self.smallest is None or candidate.peak_bytes < self.smallest.peak_bytes:
                self.smallest = candidate
            if candidate.peak_bytes <= self._request.budget_bytes:
                return candidate
        return None

    def check_data(self) -> None:
        """Have a worker read the rows as a run would, if the user names a data set.

        Raises:
            DataError: the rows cannot be used with the base model's tokenizer.
        """
        if self._request.data_fingerprint is not None:
            sources = Sources(
                base_model=self._request.base_fingerprint, dataset=self._request.data_fingerprint
            )
            check_rows([_as_experiment(self._request.base, sources=sources)], self._answers)

    def _weights_bytes(self, settings: Settings) -> int:
        precision = precision_of(settings)
        return base_weight_bytes(self.shape, precision) + quantisation_bytes(self.shape, precision)

    def _estimator(self, settings: Settings) -> Estimator:
        return _estimator(settings, self._answers, stored=self._stored)


def machine_of(base: Settings, answers: Answers) -> Machine:
    """The device on which a worker of this machine would train."""
    return _estimator(base, answers).machine


def _estimator(settings: Settings, answers: Answers, *, stored: Sequence[ExperimentResult] = ()) -> Estimator:
    experiment = _as_experiment(settings, sources=Sources(base_model=settings.base_model, dataset=""))
    plan = plan_configurations([experiment], answers)
    use_stored_times(plan.predicted, stored)
    return plan.predicted.estimators[experiment.pack_key]


def _as_experiment(settings: Settings, *, sources: Sources) -> Experiment:
    return Experiment(
        name="recommended",
        arm="recommended",
        experiment_type="custom",
        seed=0,
        settings=settings,
        sources=sources,
    )


def literature_candidates(
    finder: CandidateFinder, request: RecommendationRequest, *, enough: int = 2
) -> list[Candidate]:
    """The first `enough` configurations of the published rules that fit: one to recommend, one as its alternative."""
    num_tokens, num_steps = _size_of_data(request)
    found: list[Candidate] = []
    for settings in literature_settings(
        finder.shape,
        base=request.base,
        num_completion_tokens=num_tokens,
        num_steps=num_steps,
        precision=request.fixed.get("quantization"),
    ):
        if found and settings.quantization != found[0].settings.quantization:
            continue  # 4 bits only if bf16 does not fit
        candidate = finder.fitting(settings)
        if candidate is None:
            continue
        seconds = candidate.train_seconds
        timed = None if seconds is None or num_steps is None else seconds * num_steps
        time_from = None if timed is None else candidate.time_from
        found.append(replace(candidate, train_seconds=timed, time_from=time_from))
        if len(found) == enough:
            break
    return found


def stored_evidence(
    tracker: ExperimentTracker, finder: CandidateFinder, *, request: RecommendationRequest
) -> Iterator[Evidence]:
    """Studies of this model or its family with completed arms, those with the fewest departures first."""
    suites = tracker.get_suites()
    statements = {suite.suite_name: suite.questions for suite in suites}
    results = tracker.get_all_experiments(suite_name=request.suite_name if request.is_only else None)
    found = [
        (departures, study)
        for whole in split_studies(results)
        for study in _by_subject(for_a_reader(whole, statements.get(whole.suite_name, ())))
        if (departures := _departures(study, request)) is not None
    ]
    for departures, study in sorted(found, key=lambda pair: len(pair[0])):
        of_suite = statements.get(study.suite_name, ())
        criterion, notes = judged_by(study, of_suite, request=request)
        yield Evidence(
            study=study,
            held_out=_held_out(study),
            candidates=_candidates(study, finder, request=request, as_measured=not departures),
            criterion=criterion,
            items=stored_items(tracker, study, metrics=criterion.metrics_by_item),
            departures=departures,
            is_named=study.suite_name == request.suite_name,
            notes=notes,
        )


def silent_suites(tracker: ExperimentTracker, request: RecommendationRequest) -> tuple[str, ...]:
    """Why a suite that the user may expect evidence from gives none: imported, or without a completed experiment."""
    imported = dict.fromkeys(result.suite_name for result in tracker.get_imported())
    reasons = [f"{name}: imported, and a recommendation comes from your own runs only" for name in imported]
    if request.suite_name is None:
        return tuple(reasons)
    results = tracker.get_all_experiments(suite_name=request.suite_name)
    if results and not any(result.status == "completed" for result in results):
        reasons.append(f"{request.suite_name}: none of its {len(results)} experiments has completed")
    return tuple(reasons)


def _by_subject(study: Study) -> Iterator[Study]:
    """The study, split by base model and data set. Parts without a completed arm are left out."""
    by_subject: dict[tuple[object, object], list[StudyArm]] = {}
    for arm in study.arms:
        sources = (arm.completed or arm.results)[-1].sources
        by_subject.setdefault((sources.get("base_model"), sources.get("dataset")), []).append(arm)
    for arms in by_subject.values():
        if any(arm.completed for arm in arms):
            yield replace(study, arms=tuple(arms))


def _held_out(study: Study) -> str:
    """The rows that a study reports on, in words."""
    settings = study.completed[-1].settings
    is_test = reporting_split(study) == "test"
    rows = "the test rows" if is_test else "the held-out rows"
    own = settings.get("test_dataset_path") if is_test else settings.get("eval_dataset_path")
    if own is not None:
        return f"{rows} in {own}"
    return f"{rows} of {settings.get('eval_dataset_path') or settings['dataset_path']}"


def _departures(study: Study, request: RecommendationRequest) -> tuple[str, ...] | None:
    """How the study's model and data differ from the request; None if the model is of another family."""
    latest = study.completed[-1]
    base, data = latest.sources.get("base_model"), latest.sources.get("dataset")
    apart = []
    if base != request.base_fingerprint:
        theirs = str(latest.settings["base_model"])
        if not _same_family(theirs, request.base.base_model):
            return None
        apart.append(f"the model was {theirs}, of the same family and another size or version")
    if request.data_fingerprint not in {None, data}:
        trained = f"the data were {latest.settings['dataset_path']}"
        held_out = request.data_fingerprint in {
            latest.sources.get("eval_dataset"),
            latest.sources.get("test_dataset"),
        }
        apart.append(f"{trained}; {request.base.dataset_path} was held out" if held_out else trained)
    return tuple(apart)


def _same_family(one: str, other: str) -> bool:
    types = [_config_of(model).get("model_type") for model in (one, other)]
    return types[0] is not None and types[0] == types[1]


def _config_of(base_model: str) -> Mapping[str, object]:
    """The model's `config.json`; empty if it is not on this machine."""
    try:
        path = config_folder(base_model) / "config.json"
    except ModelError:
        return {}
    values: Mapping[str, object] = json.loads(Path(path).read_text(encoding="utf-8"))
    return values


def _candidates(
    study: Study, finder: CandidateFinder, *, request: RecommendationRequest, as_measured: bool
) -> dict[str, Candidate]:
    """A candidate for each completed arm that fits.

    If fewer than two fit, all arms are tried with the base in 4 bits, then with half the rank, then with both. If the
    arms differ in a requested setting, as in a study of precisions, only the arms that have the requested value count.
    """
    completed = [arm for arm in study.arms if arm.completed]
    other_data = request.data_fingerprint not in {None, completed[-1].completed[-1].sources.get("dataset")}
    differing = differing_settings(study.arms)
    for change, departures in _CHANGES:
        found = {}
        for arm in completed:
            settings = _settings_for_request(arm, request, change=change, other_data=other_data)
            apart = {
                key: arm.settings[key] for key, value in request.fixed.items() if arm.settings[key] != value
            }
            if settings is None or any(key in differing for key in apart):
                continue
            unlike_request = tuple(_APART[key].format(value) for key, value in apart.items())
            candidate = finder.fitting(settings, departures=(*unlike_request, *departures))
            if candidate is not None:
                found[arm.name] = (
                    _with_time_of_request(candidate, request)
                    if other_data
                    else _with_time(
                        candidate, arm, study=study, as_measured=as_measured and not (change or apart)
                    )
                )
        # A single candidate out of several arms has no verdict. If only one arm completed, it has one.
        if len(found) >= min(2, len(completed)):
            return found
    return {}


_CHANGES: Sequence[tuple[frozenset[str], tuple[str, ...]]] = (
    (frozenset(), ()),
    (frozenset({"4bit"}), ("the base is held in 4 bits, and was not in the study",)),
    (frozenset({"rank"}), ("half the rank that was measured",)),
    (
        frozenset({"4bit", "rank"}),
        ("the base is held in 4 bits, and was not in the study", "half the rank that was measured"),
    ),
)

#: Settings that belong to the data: the length of rows and of training.
_LENGTHS = ("max_seq_length", "max_steps", "num_train_epochs")

#: Notes for settings in which a study differs from the request.
_APART: Mapping[str, str] = {
    "quantization": "the base was held in {}",
    "max_seq_length": "rows were cut at {} tokens",
}


def _settings_for_request(
    arm: StudyArm, request: RecommendationRequest, *, change: frozenset[str], other_data: bool = False
) -> Settings | None:
    """The arm's settings on the requested model, with the change applied; None if the change alters nothing.

    On other data than the study's, the lengths of rows and training are those of the request.
    """
    settings = arm.typed_settings
    if settings.arm_method.is_full and (change or request.fixed.get("quantization") in {"4bit", "8bit"}):
        return None  # all weights train, at no rank and not in codes
    updates: dict[str, object] = {"base_model": request.base.base_model, **request.fixed}
    if request.has_data:
        updates["dataset_path"] = request.base.dataset_path
    if other_data:
        updates |= {key: getattr(request.base, key) for key in _LENGTHS}
    if "4bit" in change:
        if settings.quantization == "4bit" or "quantization" in request.fixed:
            return None
        updates["quantization"] = "4bit"
    if "rank" in change:
        if settings.lora_rank == 1:
            return None
        updates["lora_rank"] = settings.lora_rank // 2
    ratio = _rate_ratio(settings.base_model, request.base.base_model)
    if ratio != 1:  # else keep every digit of the measured rate
        updates["learning_rate"] = as_shown(settings.learning_rate * ratio)
    return settings.model_copy(update=updates)


def _rate_ratio(measured: str, wanted: str) -> float:
    """The factor on the learning rate, by the published rule, from the measured model's size to the wanted one's.

    1 if the rule does not know the family or a size.
    """
    ours, theirs = _config_of(wanted), _config_of(measured)
    sizes = [config.get("hidden_size") for config in (theirs, ours)]
    power = family_power(str(ours.get("model_type", "")))
    if power is None or not all(isinstance(size, int) for size in sizes):
        return 1.0
    small, large = (float(str(size)) for size in sizes)
    return float((small / large) ** power)


def _with_time(candidate: Candidate, arm: StudyArm, *, study: Study, as_measured: bool) -> Candidate:
    """The candidate with a time: the measured one if the layout is the measured layout, else the predicted one."""
    num_steps = arm.completed[-1].num_steps
    same_layout = all(
        getattr(candidate.settings, key) == arm.settings.get(key)
        for key in ("per_device_train_batch_size", "gradient_checkpointing", "quantization")
    )
    step = summarise_arm(arm, study).costs.step_seconds
    if as_measured and same_layout and step is not None and num_steps is not None:
        return replace(
            candidate, train_seconds=step.median * num_steps, time_from="measured steps of this arm alone"
        )
    if candidate.train_seconds is None or num_steps is None:
        return replace(candidate, train_seconds=None, time_from=None)
    return replace(candidate, train_seconds=candidate.train_seconds * num_steps)


def _with_time_of_request(candidate: Candidate, request: RecommendationRequest) -> Candidate:
    """The candidate with the time of as many steps as the requested data have."""
    if candidate.train_seconds is None:
        return candidate
    num_steps = steps_of(candidate.settings, num_rows=len(request.train_rows))
    return replace(candidate, train_seconds=candidate.train_seconds * num_steps)


def _candidate(settings: Settings, estimate: PackEstimate, *, departures: tuple[str, ...]) -> Candidate:
    """A candidate from an estimate. Its `train_seconds` hold one step until the number of steps is known."""
    terms = estimate.prediction.terms
    return Candidate(
        settings=settings,
        peak_bytes=terms.total,
        terms_bytes=dict(terms.named()),
        num_trainable_parameters=sum(estimate.num_trainable.values()),
        train_seconds=estimate.step_seconds,
        time_from=None if estimate.calibration is None else estimate.calibration.source,
        departures=departures,
    )


def _size_of_data(request: RecommendationRequest) -> tuple[int | None, int | None]:
    """(completion tokens, steps) of the training rows; None for a number that cannot be counted.

    Without a given length, training is one epoch.
    """
    if not request.has_data:
        return None, request.base.max_steps
    rows = request.train_rows
    batch = {"per_device_train_batch_size": EFFECTIVE_BATCH, "gradient_accumulation_steps": 1}
    num_steps = steps_of(request.base.model_copy(update=batch), num_rows=len(rows))
    return num_completion_tokens(rows, request.base.base_model), num_steps
