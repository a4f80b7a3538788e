"""How many workers a machine is given, and what each is told."""

import pytest

from lorastudy.executors import LocalExecutor, MultiWorkerExecutor, local_executor, multi_worker
from lorastudy.executors.multi_worker import MAX_CPU_WORKERS, MAX_SHARED_BYTES, shares, worker_environments
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

MACHINE = {"num_experiments": 30, "num_base_bytes": 1000, "num_cores": 2, "gpus": (), "environment": {}}


def threads(**differing):
    return [each.get("OMP_NUM_THREADS") for each in worker_environments(**{**MACHINE, **differing})]


def experiment(name, base_model="lab"):
    return Experiment(
        name=name, arm=name, experiment_type="custom", seed=0, settings=Settings(base_model=base_model),
        sources=Sources(base_model="b", dataset="d"),
    )  # fmt: skip


def test_small_models_share_a_cpu_among_workers_of_few_threads():
    assert threads() == ["1", "1"]
    assert threads(num_cores=8, num_experiments=3) == ["2", "2", "2"]
    assert threads(num_cores=64) == [str(64 // MAX_CPU_WORKERS)] * MAX_CPU_WORKERS
    assert threads(num_cores=1) == ["1"]


@pytest.mark.parametrize(
    "differing",
    [
        {"num_base_bytes": MAX_SHARED_BYTES + 1},
        {"environment": {"OMP_NUM_THREADS": "2"}},
    ],
    ids=["large model", "the user's own number of threads"],
)
def test_else_there_is_one_worker_with_all_threads(differing):
    assert worker_environments(**{**MACHINE, **differing}) == [{}]


def test_one_experiment_keeps_all_threads():
    assert threads(num_experiments=1) == ["2"]


def test_each_gpu_has_a_worker():
    four = worker_environments(**{**MACHINE, "gpus": ["0", "1", "2", "3"], "num_experiments": 3})
    assert four == [{"CUDA_VISIBLE_DEVICES": number, "LORASTUDY_NEEDS_GPU": "1"} for number in "012"]
    assert worker_environments(**{**MACHINE, "gpus": ["0"]}) == [{"LORASTUDY_NEEDS_GPU": "1"}]


def test_gpus_are_those_of_the_machine_or_those_that_the_user_names(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert multi_worker._gpus({}, devices=tmp_path) == ["0", "1"]
    for names, gpus in {
        "3,5": ["3", "5"], "": [], "-1": [], "NoDevFiles": [], "0,-1,1": ["0"], "GPU-8932f937, MIG-4": ["GPU-8932f937", "MIG-4"],
    }.items():  # fmt: skip
        assert multi_worker._gpus({"CUDA_VISIBLE_DEVICES": names}, devices=tmp_path) == gpus


def test_cuda_counts_the_devices_of_a_container_from_zero(tmp_path):
    """A container with two GPUs of its machine has their files under the machine's numbers."""
    for name in ("nvidia5", "nvidia2", "nvidiactl", "nvidia-caps"):
        (tmp_path / name).touch()
    assert multi_worker._gpus({}, devices=tmp_path) == ["0", "1"]


@pytest.mark.parametrize(("gpus", "environment"), [(["0"], {"LORASTUDY_NEEDS_GPU": "1"}), ([], {})])
def test_the_worker_of_the_only_gpu_must_find_it(gpus, environment, monkeypatch):
    monkeypatch.setattr(multi_worker, "_gpus", lambda *_, **__: gpus)
    executor = local_executor([experiment("a")])
    assert isinstance(executor, LocalExecutor)
    assert executor._environment == environment


def test_workers_of_gpus_keep_the_number_of_threads_of_this_process():
    gpus = worker_environments(**{**MACHINE, "gpus": ["0", "1"]})
    assert MultiWorkerExecutor(environments=gpus).num_threads is None


def test_how_many_follows_from_the_suite(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(multi_worker, "_gpus", lambda *_, **__: [])
    monkeypatch.setattr(multi_worker, "_num_cores", lambda: 2)
    small = [experiment("a"), experiment("b")]
    assert isinstance(local_executor(small), MultiWorkerExecutor)
    assert local_executor(small).num_packs_at_once == 2
    assert local_executor(small).num_threads == 1  # two cores for two workers
    assert isinstance(local_executor(small[:1]), LocalExecutor)
    assert local_executor(small[:1]).num_threads is None  # as many as torch takes
    assert isinstance(local_executor([*small, experiment("c", "someone/large-model")]), LocalExecutor)


def test_large_packs_are_dealt_first_and_to_whoever_has_least(tmp_path):
    folders = []
    for number, size in enumerate([1, 4, 2, 2]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pack = Pack(
            id=str(number),
            attempt=1,
            engine="auto",
            experiments=tuple(experiment(str(n)) for n in range(size)),
        )
        pack.write(folder)
        folders.append(folder)
    dealt = [[path.name for path in lane] for lane in shares(folders, num_lanes=2)]
    assert dealt == [["0", "1"], ["2", "3"]]
    assert shares(folders[:1], num_lanes=3) == [[folders[0]], [], []]
