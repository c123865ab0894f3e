"""Files that a verb writes when its work is done."""

from __future__ import annotations

from pathlib import Path


def size_in_words(count: int) -> str:
    """Of so many bytes, e.g. 7.1 kB or 15.5 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def check_writable(*paths: Path | None) -> None:
    """Makes the folders of files that are to be written, and says before the work, not after it, what cannot be.

    Raises:
        ValueError: one line, for a folder in a file's place, or a place where nothing can be written.
    """
    for path in paths:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            path.open("ab").close()
            if new:
                path.unlink()
        except OSError as error:
            raise ValueError(f"cannot write {str(path)!r}: {error.strerror}") from None
