"""Several workers of this machine at once, each with its share of the packs and an environment of its own.

Which share is told beforehand, so that a worker keeps its base model from pack to pack.
"""

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from lorastudy.executors.executor import Event
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.process import WORKER
from lorastudy.records import Pack

#: What a lane puts last.
_END = object()


class SideBySideExecutor:
    """A local executor for each of the given environments; a folder goes to the one with the fewest experiments."""

    def __init__(self, *, environments: Sequence[Mapping[str, str]], worker: Sequence[str] = WORKER) -> None:
        """`environments` and `worker` as in `LocalExecutor`."""
        self._environments, self._worker = environments, worker
        self._lanes: list[LocalExecutor] = []
        self._is_leaving = False

    @property
    def num_packs_at_once(self) -> int:
        """One for each lane."""
        return len(self._environments)

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders; each lane keeps its own order."""
        events: queue.Queue[object] = queue.Queue()
        # Fresh ones for each run: a suite that goes round after round would meet those that an earlier one stopped.
        self._lanes = [LocalExecutor(worker=self._worker, environment=each) for each in self._environments]
        if self._is_leaving:
            self.leave()
        threads = [
            threading.Thread(target=_serve, args=(lane, share), kwargs={"events": events}, daemon=True)
            for lane, share in zip(self._lanes, shares(folders, num_lanes=len(self._lanes)), strict=True)
            if share
        ]
        for thread in threads:
            thread.start()
        try:
            num_open = len(threads)
            while num_open:
                event = events.get()
                if event is _END:
                    num_open -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event  # type: ignore[misc]  # a queue of events, errors and ends
        finally:
            for lane in self._lanes:
                lane.stop()
            for thread in threads:
                thread.join()

    def leave(self) -> None:
        """Ask all workers to save what they are at and to leave."""
        self._is_leaving = True
        for lane in self._lanes:
            lane.leave()


def shares(folders: Sequence[Path], *, num_lanes: int) -> list[list[Path]]:
    """The folders of each lane: the largest packs first, each to the lane with the fewest experiments so far."""
    sizes = {folder: len(Pack.read(folder).experiments) for folder in folders}
    lanes: list[list[Path]] = [[] for _ in range(num_lanes)]
    for folder in sorted(folders, key=lambda folder: -sizes[folder]):
        min(lanes, key=lambda lane: sum(sizes[one] for one in lane)).append(folder)
    return [[folder for folder in folders if folder in lane] for lane in lanes]


def _serve(lane: LocalExecutor, folders: Sequence[Path], *, events: "queue.Queue[object]") -> None:
    """A lane's events into the queue; whatever breaks it is raised where the events are read."""
    try:
        with closing(lane.run(folders)) as served:
            for event in served:
                events.put(event)
    except BaseException as error:  # noqa: BLE001 - a thread has nobody else to tell
        events.put(error)
    events.put(_END)
