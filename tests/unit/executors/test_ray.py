"""What a task of Ray is told, where Ray itself does not matter."""

from pathlib import Path
from typing import Any

import pytest

from lorastudy.executors import ray


class Tasks:
    """Stands for Ray; keeps what a task was started with."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []

    def remote(self, *_: Any, **values: Any) -> Any:
        if values:
            self.started.append(values)
        return self

    def options(self, **_: Any) -> "Tasks":
        return self


@pytest.mark.parametrize(
    ("num_gpus", "environment"),
    [(1.0, {"LORASTUDY_NEEDS_GPU": "1"}), (0.5, {"LORASTUDY_NEEDS_GPU": "1"}), (0.0, {})],
)
def test_a_task_with_a_gpu_never_trains_on_the_cpu(
    num_gpus: float, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks()
    monkeypatch.setattr(ray, "_import_ray", lambda: tasks)
    ray.RayExecutor()._start(Path("run"), options={"num_gpus": num_gpus})
    assert [each["environment"] for each in tasks.started] == [environment]
