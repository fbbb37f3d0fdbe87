"""A recipe in a temporary folder with a cache of its own, run by the real programs; its events and its peak memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from levain_setup import places, programs  # noqa: E402
from levain_setup.say import FAILED, Problem  # noqa: E402

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""The threads of both sides."""

STORE = places.home() / "bench"
"""Where the model in a peer's format, the rows and the sources are kept between benchmarks."""


def program() -> str:
    """The path of `levain`; its worker is found by LEVAIN_WORKER or beside it."""
    if not os.environ.get("LEVAIN"):
        os.environ.update({name: path for name, path in programs.environment().items() if name.startswith("LEVAIN")})
    return os.environ["LEVAIN"]


def measured(command: list[str], environment: dict[str, str] | None = None) -> tuple[str, int]:
    """Run a program; its standard output and the peak resident memory of its largest process in bytes.

    The peak is what the kernel counted (VmHWM) for the program and for the processes that it waited for.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        text = output.read().decode("utf-8", "replace")
        if process.returncode != 0:
            said = errors.read().decode("utf-8", "replace") + text
            raise Problem(FAILED, f"{' '.join(command)[:200]}: exit code {process.returncode}", why="\n".join(said.splitlines()[-30:]))
    return text, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Recipe:
    """A recipe, written as JSON, which is YAML; the folder is removed at the end."""

    def __init__(self, name: str, stages: dict, cache: Path | None = None, seed: int = 17) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"levain-{name}-"))
        self.path = self.folder / "recipe.yaml"
        self.cache = cache or self.folder / "cache"
        self.path.write_text(json.dumps({"levain": 1, "name": name, "seed": seed, "stages": stages}, indent=2))

    def __enter__(self) -> Recipe:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, word: str, *arguments: object) -> list[str]:
        """The command line of `levain WORD RECIPE ARGUMENTS`."""
        return [program(), word, str(self.path), *map(str, arguments), "--cache", str(self.cache)]

    def run(self, *arguments: object) -> int:
        """`levain run`; the peak memory in bytes of the larger of the two programs."""
        return measured(self.command("run", *arguments, "--threads", THREADS, "--json"))[1]

    def show(self, stage: str, *arguments: object) -> dict:
        """What `levain show` prints of a stage as JSON."""
        return json.loads(measured(self.command("show", stage, "--json", *arguments))[0])

    def events(self, stage: str) -> list[dict]:
        """The last run's events of a stage."""
        last = max((self.cache / "runs").iterdir(), key=lambda folder: folder.name)
        events = [json.loads(line) for line in (last / "events.jsonl").read_text().splitlines()]
        return [event for event in events if event.get("stage") == stage]
