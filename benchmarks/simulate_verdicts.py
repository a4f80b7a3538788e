"""Can the verdicts be trusted? Studies with a known truth, judged by the product's own functions.

    python -m benchmarks.simulate_verdicts                       some minutes on one core
    python -m benchmarks.simulate_verdicts --studies 200 --into /tmp/quick.json
    python -m benchmarks.simulate_verdicts --parts noise power   these alone; the rest of the file stays

Writes `benchmarks/results/verdict_simulation.json`, from which `docs/generate.py` makes the tables and the figure of
`docs/science.md`, and what reports say of it (`stats/verdicts_measured.json`). The studies are drawn and judged as whole arrays; that this is what the product does to one study
is a test of its own (`tests/unit/stats/test_simulation.py`).
"""

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from benchmarks.noise_kinds import noise_kinds, other_rules
from benchmarks.verdict_studies import (
    PROFILES,
    RECORDED,
    SEED,
    Design,
    Floats,
    Row,
    Studies,
    by_seed,
    chunks,
    true_error,
    true_noise,
)
from lorastudy.stats import verdicts
from lorastudy.stats.best import confidence_set
from lorastudy.stats.power import POWER, Noise, power_of_difference, power_of_no_worse
from lorastudy.stats.twoway import TwoWay, seeds_only, two_way
from lorastudy.stats.verdicts import ALPHA, differences_shown, no_worse_shown, sign_flip_p, sign_flip_p_below

RESULTS = Path(__file__).parent / "results" / "verdict_simulation.json"
MEASURED = Path(verdicts.__file__).with_name("verdicts_measured.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every simulation and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_verdicts")
    parser.add_argument("--studies", type=int, default=4000, help="of each design")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to simulate")
    chosen = parser.parse_args(arguments)
    results = simulated(chosen.studies, parts=chosen.parts)
    if len(chosen.parts) < len(PARTS):
        results = _with_the_rest(results, chosen.into)
    chosen.into.parent.mkdir(parents=True, exist_ok=True)
    chosen.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {chosen.into}")
    if chosen.into == RESULTS:
        MEASURED.write_text(json.dumps(told_in_reports(results), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {MEASURED}")
    return 0


def told_in_reports(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The errors of the present rule by kind of noise: the worst of all designs, as the page has them."""
    by_kind: dict[tuple[str, int | None], list[Row]] = {}
    for row in results["noise"]:
        if row["rule"] == "now":
            num_rows = row["num_items"] if row["kind"] == RECORDED.name else None
            by_kind.setdefault((row["kind"], num_rows), []).append(row)
    return [
        {
            "kind": kind,
            "num_rows": num_rows,
            "better": max(row["better"] for row in rows),
            "as_good": max(
                max(*row["as_good"], *row["as_good_of_gain"], row["as_good_in_family"]) for row in rows
            ),
        }
        for (kind, num_rows), rows in by_kind.items()
    ]


def simulated(num_studies: int, *, parts: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything, or some parts of it, from `num_studies` studies of each design."""
    results: dict[str, Any] = {
        "num_studies": num_studies,
        "seed": SEED,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "profiles": [vars(profile) for profile in PROFILES],
    }
    for name in PARTS if parts is None else parts:
        results[name] = PARTS[name](num_studies)
        print(f"{name}: {len(results[name])} designs", flush=True)
    return results


def _with_the_rest(results: dict[str, Any], file: Path) -> dict[str, Any]:
    """New parts in the place of a file's own, which must be of as many studies, drawn by the same version of numpy."""
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key in ("num_studies", "seed", "numpy"):
        if kept[key] != results[key]:
            raise SystemExit(f"{file} has {key} {kept[key]}, not {results[key]}: simulate all parts")
    return {name: (kept | results)[name] for name in [*kept, *(key for key in results if key not in kept)]}


# --- the questions ----------------------------------------------------------------------------------------


def coverage(num_studies: int) -> list[Row]:
    """How often the 95 % interval holds the true difference."""
    sizes = [(n, m) for n in (4, 6, 8, 12) for m in (50, 200, 1000)]
    rows = []
    for profile in PROFILES:
        for num_seeds, num_items in sizes:
            design = Design(profile=profile, num_seeds=num_seeds, num_items=num_items)
            share = _mean_over(design, num_studies, lambda studies: _covers(_estimate(studies).interval()))
            rows.append(design.row | {"share": share})
    return rows


def alternatives(num_studies: int) -> list[Row]:
    """The same for the intervals that were not kept, from a quarter of the studies, since bootstraps are slow."""
    rows = []
    num_studies = max(20, num_studies // 4)
    for profile in PROFILES:
        for num_seeds in (4, 6, 12):
            design = Design(profile=profile, num_seeds=num_seeds, num_items=200)
            for name, interval in INTERVALS.items():
                share = _mean_over(design, num_studies, partial(_covered_by, interval))
                rows.append(design.row | {"interval": name, "num_studies": num_studies, "share": share})
    return rows


def _covered_by(interval: Callable[[Studies], "Interval"], studies: Studies) -> Floats:
    return _covers(interval(studies))


def false_better(num_studies: int) -> list[Row]:
    """How often any of the arms, all equal to the reference, is called better or worse."""
    rows = []
    for profile in PROFILES:
        for num_seeds in (6, 8, 12):
            design = Design(profile=profile, num_seeds=num_seeds, num_items=200, num_arms=5)
            share = _mean_over(design, num_studies, lambda studies: _shown(studies).any(axis=-1))
            rows.append(design.row | {"share": share})
    return rows


def false_as_good(num_studies: int) -> list[Row]:
    """How often any arm that is worse by just the margin is called as good within it.

    In sequence: all five ranks below the reference are a margin behind, or only the smallest three are. Without a
    ladder all five are, and Holm corrects. The margin is three standard errors of one comparison.
    """
    orders = (("ladder, all behind", 0, True), ("ladder, two equal", 2, True), ("no ladder", 0, False))
    rows = []
    for profile, num_seeds in itertools.product(PROFILES, (5, 6, 8, 12)):
        design = Design(profile=profile, num_seeds=num_seeds, num_items=200, num_arms=5)
        judges = [
            partial(_falsely_no_worse, design=design, num_equal=num_equal, in_sequence=in_sequence)
            for _, num_equal, in_sequence in orders
        ]
        for (name, _, _), share in zip(orders, _means_over(design, num_studies, judges), strict=True):
            rows.append(design.row | {"order": name, "share": share})
    return rows


def _falsely_no_worse(studies: Studies, *, design: Design, num_equal: int, in_sequence: bool) -> Floats:
    margin = 3 * true_error(studies, design)
    truth = margin[:, None] * (np.arange(design.num_arms) >= num_equal)
    passes = _no_worse(studies, truth=truth, margin=margin, in_sequence=in_sequence)
    called: Floats = np.any(passes[:, num_equal:], axis=-1).astype(np.float64)
    return called


def false_share(num_studies: int) -> list[Row]:
    """The same where the margin is a share of the gain and all five ranks give up just that share.

    By the test that takes the noise of the gain into account, and by one against the measured gain as if it were known.
    The true gain is such that the share of it is three standard errors of one comparison.
    """
    rows = []
    for profile, num_seeds in itertools.product(PROFILES, (5, 6, 8, 12)):
        design = Design(profile=profile, num_seeds=num_seeds, num_items=200, num_arms=5)
        ways = list(itertools.product((0.05, 0.2, 0.5), (False, True)))
        judges = [partial(_falsely_kept, design=design, share=of, is_known=known) for of, known in ways]
        for (of, known), share in zip(ways, _means_over(design, num_studies, judges), strict=True):
            rows.append(design.row | {"of_gain": of, "gain_taken_as_known": known, "share": share})
    return rows


def _falsely_kept(studies: Studies, *, design: Design, share: float, is_known: bool) -> Floats:
    assert studies.gains is not None
    given_up = 3 * true_error(studies, design)
    gains = studies.gains + (given_up / share)[:, None, None, None]
    differences = studies.differences + given_up[:, None, None, None]
    if is_known:
        margin = share * _mean_gain(gains, studies.weights)
        against = Studies(differences=differences - margin[:, None, None, None], weights=studies.weights)
    else:
        against = Studies(differences=differences - share * gains, weights=studies.weights)
    bound = np.zeros(against.differences.shape[:2])
    flips = sign_flip_p_below(by_seed(against), bound)
    passes = no_worse_shown(_estimate(against).p_below(bound), flips, in_sequence=True)
    called: Floats = np.any(passes, axis=-1).astype(np.float64)
    return called


def _mean_gain(gains: Floats, weights: Floats) -> Floats:
    """Over items by their weight, and over seeds: one for each study."""
    mean: Floats = by_seed(Studies(differences=gains, weights=weights))[:, 0].mean(axis=-1)
    return mean


def power(num_studies: int) -> list[Row]:
    """How often a true difference, or true equality, is shown, where the plan says four times in five."""
    rows = []
    for profile, num_seeds in itertools.product(PROFILES, (6, 8, 12, 16)):
        design = Design(profile=profile, num_seeds=num_seeds, num_items=200)
        plan = partial(_planned, noise=true_noise(design), num_seeds=num_seeds)
        for verdict, judge in (("better", _truly_apart), ("as good", _truly_equal)):
            distance = _distance_found(partial(plan, verdict=verdict))
            share = _mean_over(design, num_studies, partial(judge, distance=distance))
            planned = plan(distance, verdict=verdict)
            rows.append(design.row | {"verdict": verdict, "planned": planned, "share": share})
    return rows


def _planned(distance: float, *, noise: Noise, num_seeds: int, verdict: str) -> float:
    plan = power_of_difference if verdict == "better" else power_of_no_worse
    return float(plan(distance, noise, num_seeds=num_seeds)[0])


def _truly_apart(studies: Studies, *, distance: float) -> Floats:
    return _shown(studies, truth=distance)[:, 0].astype(np.float64)


def _truly_equal(studies: Studies, *, distance: float) -> Floats:
    margin = np.full(len(studies.weights), distance)
    shown = _no_worse(studies, truth=np.zeros((len(margin), 1)), margin=margin, in_sequence=False)
    return shown[:, 0].astype(np.float64)


def chosen_rate(num_studies: int) -> list[Row]:
    """False "better" where each of three equal configurations stands at the best of three equal learning rates.

    The rate is picked on rows of its own with the same seeds, as the product does, or on the reported rows.
    `optimism` is how much the chosen scores fall below the truth, in standard errors of one comparison.
    """
    rows = []
    for profile, in_sample in itertools.product(PROFILES, (False, True)):
        design = Design(profile=profile, num_seeds=6, num_items=200, num_arms=8)
        judge = partial(_with_chosen_rates, design=design, in_sample=in_sample)
        every = np.concatenate([judge(studies) for studies in chunks(design, num_studies)])
        share, optimism = (float(value) for value in every.mean(axis=0))
        rows.append(design.row | {"in_sample": in_sample, "share": share, "optimism": optimism})
    return rows


def tied_set(num_studies: int) -> list[Row]:
    """How often the model confidence set holds the best of six arms, here all equal but in name: its hardest case."""
    rows = []
    for num_seeds in (6, 8, 12, 20):
        draw = np.random.default_rng([SEED, num_seeds])
        kept = []
        for _ in range(max(20, num_studies // 5)):
            costs = draw.normal(0, 0.05, (6, num_seeds))
            found = confidence_set({str(arm): row.tolist() for arm, row in enumerate(costs)})
            assert found is not None
            kept.append("0" in found.arms)
        rows.append(
            {"num_seeds": num_seeds, "num_arms": 6, "num_studies": len(kept), "share": float(np.mean(kept))}
        )
    return rows


# --- intervals that were tried ----------------------------------------------------------------------------


def _estimate(studies: Studies) -> TwoWay:
    return two_way(studies.differences, np.broadcast_to(studies.weights, _items_shape(studies)))


def _items_shape(studies: Studies) -> tuple[int, int, int]:
    num_studies, num_arms, _, num_items = studies.differences.shape
    return num_studies, num_arms, num_items


Interval = tuple[Floats, Floats]


def _seeds_only(studies: Studies) -> Interval:
    return seeds_only(by_seed(studies)).interval()


def _normal(studies: Studies) -> Interval:
    return _around(_estimate(studies), np.array(special.ndtri(1 - ALPHA / 2)))


def _fewest(studies: Studies) -> Interval:
    """T with as many degrees as the smaller number of clusters, less one (Cameron, Gelbach and Miller's advice)."""
    estimate = _estimate(studies)
    fewest = min(studies.differences.shape[-2:])
    return _around(estimate, np.array(special.stdtrit(fewest - 1, 1 - ALPHA / 2)))


def _satterthwaite(studies: Studies) -> Interval:
    """With Satterthwaite's degrees as they are."""
    estimate = _estimate(studies)
    seeds, items = estimate.seed_variance, estimate.items_alone
    num_seeds, num_items = studies.differences.shape[-2:]
    degrees = (seeds + items) ** 2 / (seeds**2 / (num_seeds - 1) + items**2 / (num_items - 1))
    return _around(estimate, special.stdtrit(degrees, 1 - ALPHA / 2))


def _around(estimate: TwoWay, quantile: Floats) -> Interval:
    half = quantile * estimate.standard_error
    return estimate.mean - half, estimate.mean + half


def _percentile(studies: Studies) -> Interval:
    """Seeds and items drawn anew with replacement, and the percentiles of the mean."""
    means, _ = _resampled(studies, num_resamples=400, with_errors=False)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return low, high


def _studentised(studies: Studies) -> Interval:
    """As before, but the percentiles of the resampled t: each resample with its own two-way error."""
    estimate = _estimate(studies)
    means, errors = _resampled(studies, num_resamples=199, with_errors=True)
    t = (means - estimate.mean) / np.maximum(errors, 1e-12)
    low, high = np.quantile(t, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return estimate.mean - high * estimate.standard_error, estimate.mean - low * estimate.standard_error


def _resampled(studies: Studies, *, num_resamples: int, with_errors: bool) -> tuple[Floats, Floats]:
    """Means (resamples, studies, arms) and, if asked, their two-way errors. All studies of a chunk share the draws."""
    draw = np.random.default_rng(SEED)
    num_seeds, num_items = studies.differences.shape[-2:]
    means, errors = [], []
    for _ in range(num_resamples):
        seeds, items = draw.integers(num_seeds, size=num_seeds), draw.integers(num_items, size=num_items)
        again = Studies(
            differences=studies.differences[:, :, seeds][..., items], weights=studies.weights[..., items]
        )
        if with_errors:
            estimate = _estimate(again)
            means.append(estimate.mean)
            errors.append(estimate.standard_error)
        else:
            means.append(by_seed(again).mean(axis=-1))
    return np.stack(means), np.stack(errors) if errors else np.empty(0)


INTERVALS: Mapping[str, Callable[[Studies], Interval]] = {
    "seeds only, t": _seeds_only,
    "two-way bootstrap, percentiles": _percentile,
    "two-way bootstrap, studentised": _studentised,
    "two-way variance, normal": _normal,
    "two-way variance, t of the fewest clusters": _fewest,
    "two-way variance, t of Satterthwaite": _satterthwaite,
    "two-way variance, t of Satterthwaite with seeds raised (kept)": lambda studies: _estimate(
        studies
    ).interval(),
}


# --- judging ----------------------------------------------------------------------------------------------


def _covers(interval: Interval) -> Floats:
    """Noise alone was drawn, so the truth is 0."""
    low, high = interval
    return ((low <= 0) & (high >= 0))[:, 0].astype(np.float64)


def _shown(studies: Studies, *, truth: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which arms are called better or worse, whose true difference is `truth`."""
    moved = Studies(differences=studies.differences + truth, weights=studies.weights)
    return differences_shown(_estimate(moved).p_value(), sign_flip_p(by_seed(moved)))


def _no_worse(studies: Studies, *, truth: Floats, margin: Floats, in_sequence: bool) -> npt.NDArray[np.bool_]:
    """Which arms are called as good within the study's margin, whose true differences are `truth` (studies, arms)."""
    moved = Studies(differences=studies.differences + truth[..., None, None], weights=studies.weights)
    bound = np.broadcast_to(margin[:, None], truth.shape)
    flips = sign_flip_p_below(by_seed(moved), bound)
    return no_worse_shown(_estimate(moved).p_below(bound), flips, in_sequence=in_sequence)


def _with_chosen_rates(studies: Studies, *, design: Design, in_sample: bool) -> Floats:
    """Whether any of two configurations is told from the third, and the optimism; nine arms are three at three rates."""
    reference = np.zeros_like(studies.differences[:, :1])
    losses = np.concatenate([reference, studies.differences], axis=1)
    half = losses.shape[-1] // 2
    weights = studies.weights[:, 0]
    reported = (losses[..., :half], weights[:, :half])
    picking = reported if in_sample else (losses[..., half:], weights[:, half:])
    scores = np.einsum("bksi,bi->bk", picking[0], picking[1])
    best = scores.reshape(-1, 3, 3).argmin(axis=-1) + np.array([0, 3, 6])
    chosen = np.take_along_axis(reported[0], best[..., None, None], axis=1)
    compared = Studies(differences=chosen[:, 1:] - chosen[:, :1], weights=reported[1][:, None])
    means = by_seed(Studies(differences=chosen, weights=reported[1][:, None])).mean(axis=-1)
    optimism = -means.mean(axis=-1) / true_error(compared, design)
    return np.stack([_shown(compared).any(axis=-1).astype(np.float64), optimism], axis=-1)


def _mean_over(design: Design, num_studies: int, judge: Callable[[Studies], Any]) -> float:
    return _means_over(design, num_studies, [judge])[0]


def _means_over(design: Design, num_studies: int, judges: Sequence[Callable[[Studies], Any]]) -> list[float]:
    """What each judge says on average of the same studies."""
    found = [[judge(studies) for judge in judges] for studies in chunks(design, num_studies)]
    return [float(np.mean(np.concatenate(by_judge))) for by_judge in zip(*found, strict=True)]


def _distance_found(planned_power: Callable[[float], float]) -> float:
    """The smallest distance whose planned power is .8, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if planned_power(middle) >= POWER else (middle, high)
    return high


PARTS: Mapping[str, Callable[[int], list[Row]]] = {
    "coverage": coverage,
    "alternatives": alternatives,
    "false_better": false_better,
    "false_as_good": false_as_good,
    "false_share": false_share,
    "power": power,
    "chosen_rate": chosen_rate,
    "tied_set": tied_set,
    "noise": noise_kinds,
    "other_rules": other_rules,
}


if __name__ == "__main__":
    sys.exit(main())
