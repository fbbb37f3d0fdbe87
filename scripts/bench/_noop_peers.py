"""The same graph, chains of copies, for DVC, ninja, Snakemake and redun: folders in which nothing is left to do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from levain_setup.say import FAILED, Problem

REDUN = '''
from redun import File, task
redun_namespace = "chains"


@task()
def link(source: File, number: int, place: int) -> File:
    """Copies a file without its first line."""
    target = File(f"made/{number}-{place}.jsonl")
    with target.open("w") as out:
        out.write(source.read().split("\\n", 1)[1])
    return target


@task()
def main(chains: int, links: int) -> list:
    """All chains."""
    ends = []
    for number in range(chains):
        file = File(f"rows{number}.jsonl")
        for place in range(links):
            file = link(file, number, place)
        ends.append(file)
    return ends
'''
"""The program of redun."""


class Peer:
    """A tool in a folder of its own; `command` does nothing the second time."""

    def __init__(self, name: str, folder: Path, programs: Path, chains: int, links: int) -> None:
        self.name, self.folder = name, folder
        self.chains, self.links = chains, links
        folder.mkdir(parents=True)
        for number in range(chains):
            text = "".join(json.dumps({"text": f"row {row} of {number}"}) + "\n" for row in range(links + 10))
            (folder / f"rows{number}.jsonl").write_text(text)
        (folder / "made").mkdir()
        self.environment = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}", DVC_NO_ANALYTICS="1", HOME=str(folder),
                                XDG_CACHE_HOME=str(folder / ".cache"), PYTHONWARNINGS="ignore")  # fmt: skip
        program = str(programs / name)
        self.command = getattr(self, name)(program)

    def edges(self) -> list[tuple[str, str]]:
        """(source, target) of every stage."""
        pairs = []
        for number in range(self.chains):
            source = f"rows{number}.jsonl"
            for place in range(self.links):
                target = f"made/{number}-{place}.jsonl"
                pairs.append((source, target))
                source = target
        return pairs

    def dvc(self, program: str) -> list[str]:
        """One `dvc.yaml` with all stages, no repository around it."""
        self.call([program, "init", "--no-scm", "--quiet"])
        self.call([program, "config", "core.analytics", "false"])
        self.call([program, "config", "core.check_update", "false"])
        stages = {f"s{index}": {"cmd": f"tail -n +2 {source} > {target}", "deps": [source], "outs": [target]}
                  for index, (source, target) in enumerate(self.edges())}  # fmt: skip
        # JSON is YAML.
        (self.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        return [program, "repro", "--quiet"]

    def ninja(self, program: str) -> list[str]:
        """Modification times only, no digests."""
        lines = ["rule link", "  command = tail -n +2 $in > $out"]
        lines += [f"build {target}: link {source}" for source, target in self.edges()]
        (self.folder / "build.ninja").write_text("\n".join(lines) + "\n")
        return [program, "--quiet"]

    def snakemake(self, program: str) -> list[str]:
        """A rule for each link."""
        lines = ["rule all:", "    input: " + ", ".join(json.dumps(target) for _, target in self.edges())]
        for index, (source, target) in enumerate(self.edges()):
            lines += [f"rule s{index}:", f"    input: {source!r}", f"    output: {target!r}", '    shell: "tail -n +2 {input} > {output}"']
        (self.folder / "Snakefile").write_text("\n".join(lines) + "\n")
        return [program, "--cores", "2", "--quiet", "all"]

    def redun(self, program: str) -> list[str]:
        """A task for each link, with its database in the folder."""
        (self.folder / "chains.py").write_text(REDUN)
        return [program, "run", "chains.py", "main", "--chains", str(self.chains), "--links", str(self.links)]

    def call(self, command: list[str]) -> None:
        """Run something in the folder; a Problem where it fails."""
        answer = subprocess.run(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if answer.returncode != 0:
            said = "\n".join((answer.stderr + answer.stdout).splitlines()[-15:])
            raise Problem(FAILED, f"{' '.join(command)[:120]}: exit code {answer.returncode}", why=said)

    def made(self) -> dict[str, int]:
        """What every stage made, with its time: to see that the second run makes nothing."""
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "made").glob("*.jsonl")}
