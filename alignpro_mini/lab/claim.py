"""One process at a time in a folder: two that write one log or clear each other's unfinished files would ruin a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from alignpro_mini.options import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes out of one folder
    fcntl = None


class Claim:
    """This process's claim on a folder, until nobody refers to it any more; a kill ends it, too."""

    def __init__(self, path: Path, wait: bool) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.held = True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(f"{path} is in use by another process: wait, or use another --name") from None
            print(f"waiting for the process that works in {path}", flush=True)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            self.held = False

    def __del__(self) -> None:
        os.close(self.fd)


CLAIMS: WeakValueDictionary[tuple[int, int], Claim] = WeakValueDictionary()  # by device and inode


def claim(path: Path, wait: bool = False) -> Claim | None:
    """A claim on an existing folder; the one that this process has already, if it has one.

    Raises UserError where another process has it; with `wait` it waits for that one's end.
    """
    place = path.stat()
    key = place.st_dev, place.st_ino
    held = CLAIMS.get(key) or (Claim(path, wait) if fcntl else None)
    if held:
        CLAIMS[key] = held
    return held


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in such a block on this file."""
    with path.open() as file:
        with suppress(OSError):  # a file system without locks
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
