"""What the scripts tell a person: sizes, times, progress with a rate, and errors that say what to do next."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

# Exit codes of every script here; docs/setup.md lists them.
FAILED = 1
USAGE = 2
NOT_FETCHED = 3
WRONG_DIGEST = 4
NO_ROOM = 5
UNSUPPORTED = 6
INTERRUPTED = 130


class Problem(Exception):
    """An error for a person: what happened, why, and what to do; `code` is the exit code."""

    def __init__(self, code: int, what: str, why: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        for label, text in (("why", self.why), ("what to do", self.todo)):
            for number, line in enumerate(text.splitlines()):
                lines.append(f"  {label + ': ' if number == 0 else ' ' * (len(label) + 2)}{line}")
        return "\n".join(lines)


def stop(problem: Problem) -> NoReturn:
    """Print a problem on standard error and leave with its exit code."""
    say()
    print(problem, file=sys.stderr, flush=True)
    raise SystemExit(problem.code)


def say(text: str = "") -> None:
    """Print one line at once, also when the output is a pipe."""
    if text:
        print(text, flush=True)
    else:
        sys.stdout.flush()


def size(count: float) -> str:
    """A number of bytes in decimal units, as package indexes print them: 527 MB, 1.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            number = count / factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{int(count)} B"


def duration(seconds: float) -> str:
    """A time span: 4.2 s, 48 s, 3 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Progress:
    """One line that follows a number of bytes: redrawn on a terminal, a plain line every 10 s elsewhere."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label = label
        self.total = total
        self.live = sys.stdout.isatty()
        self.begin = time.monotonic()
        self.next = self.begin + (0.0 if self.live else 10.0)

    def at(self, done: int) -> None:
        """Tell how many bytes are done; prints when it is time to."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.2 if self.live else 10.0)
        line = self.line(done, now - self.begin)
        if self.live:
            print(f"\r{line}\x1b[K", end="", flush=True)
        else:
            say(line)

    def line(self, done: int, seconds: float) -> str:
        """The text of the line after `seconds`."""
        # A server may take its time before the first block: no rate and no forecast out of nothing.
        if done < 100_000:
            return f"  {self.label}: waiting for the first data, {duration(seconds)}"
        rate = done / seconds if seconds > 0.05 else 0.0
        amount = size(done)
        if self.total:
            done = min(done, self.total)
            amount = f"{size(done)} of {size(self.total)} ({100 * done // self.total}%)"
        text = f"  {self.label}: {amount}, {size(rate)}/s"
        if self.total and rate > 0 and done < self.total:
            text += f", {duration((self.total - done) / rate)} left"
        return text

    def end(self, done: int) -> None:
        """Finish with the whole amount and the mean rate."""
        seconds = time.monotonic() - self.begin
        rate = f", {size(done / seconds)}/s" if seconds > 0.05 else ""
        clear = "\r\x1b[K" if self.live else ""
        print(f"{clear}  {self.label}: {size(done)} in {duration(seconds)}{rate}", flush=True)

    def drop(self) -> None:
        """Leave no half-drawn line behind after an error."""
        if self.live:
            print("\r\x1b[K", end="", flush=True)
