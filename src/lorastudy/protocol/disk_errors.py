"""A disk that is full, read-only or failing: the user's to mend, wherever it is met, and nothing is lost over it.

Such an error can come out of every line that writes. It is therefore not caught where it happens but at the edge of
each process: the command line says it in one message, and a worker leaves with an exit code of its own, so that the
runner stops the suite instead of counting it as a failure of an experiment.
"""

import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

#: What a worker ends with that could not write; `EX_IOERR` of BSD's sysexits.h.
EXIT_CODE = 74

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "writing is not permitted",
    errno.EPERM: "writing is not permitted",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the network file system was cut off",
}


def is_disk_fault(error: BaseException) -> bool:
    """Whether the surroundings are to blame and not the program."""
    return isinstance(error, OSError) and error.errno in _CAUSES


def told(error: OSError) -> str:
    """What happened, where, and what to do."""
    assert error.errno is not None
    file = error.filename2 or error.filename  # of two, the second one is written
    where = f"{file}: " if file else ""
    return (
        f"{where}{_CAUSES[error.errno]} ({error.strerror}). What was stored before is kept; once that is mended, the same "
        "command goes on with what is missing"
    )


def serve_and_tell(serve: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """What a worker's `main` returns; where the disk failed, one line in its log and the exit code for that."""
    try:
        return serve(arguments)
    except OSError as error:
        if not is_disk_fault(error):
            raise
        # The log may lie on the same disk; then the exit code alone tells.
        with suppress(OSError):
            print(told(error), file=sys.stderr, flush=True)
        return EXIT_CODE
