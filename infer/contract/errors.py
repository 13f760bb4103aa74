"""What may go wrong, said once and clearly, and the exit codes that schedulers and scripts read."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_OK = 0
"""Everything that was asked for is complete."""
EXIT_FAILED = 1
"""Some tiles or outputs failed; the others are complete. Running again retries only what is missing."""
EXIT_BAD_INPUT = 2
"""Configuration, files or arguments are wrong: running again without a change cannot help."""
EXIT_TRY_AGAIN = 75
"""Interrupted, or another process holds the run (EX_TEMPFAIL): the same command may succeed later."""

UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters (NUL, newline ...), lone surrogates, line and paragraph separators."""


def one_line(text: str) -> str:
    """The text with its control characters escaped, so that it stays on one line and can be encoded."""
    return "".join(c if unicodedata.category(c) not in UNPRINTABLE else ascii(c)[1:-1] for c in text)


class SmaltiError(Exception):
    """A failure with one clear message: the file or key, what is wrong with it, and what to do.

    Attributes:
        exit_code: what the process should end with when nothing handles the error.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        # Messages repeat what files hold, which must not move the cursor of a terminal or break its encoding.
        super().__init__("\n".join(map(one_line, message.split("\n"))))
        if exit_code is not None:
            self.exit_code = exit_code


class FormatError(SmaltiError):
    """A file is not what the on-disk format says it should be."""


class BusyError(SmaltiError):
    """Another live process works on the same thing."""

    exit_code = EXIT_TRY_AGAIN


_ADVICE = {
    errno.ENOSPC: "no space left on the device: free some (or move the run) and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some (or move the run) and run the same command again",
    errno.EROFS: "the file system is read-only: put the run on one that can be written",
    errno.EACCES: "permission denied: check the owner and the mode of the folder",
    errno.EPERM: "not permitted: check the owner and the mode of the folder",
    errno.EISDIR: "a folder of that name is in the way: remove or rename it",
    errno.ENOTDIR: "a file stands where a folder is needed: remove or rename it",
    errno.EEXIST: "a file stands where a folder is needed: remove or rename it",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses while `path` is written into a message that says what to do.

    Raises:
        SmaltiError: for a full disk, a spent quota, a read-only, forbidden or occupied place. Other OSErrors pass
            unchanged.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        raise SmaltiError(f"{path}: cannot be written: {advice}", exit_code=EXIT_FAILED) from error
