"""Reads the TensorBoard files of a run with the `tensorboard` package's own reader and compares them with the run's log.

Pinned: tensorboard 2.21.0. Run: LEVAIN=target/release/levain python tests/interop/tensorboard_files.py [RUN_FOLDER ...]

Without folders a small log is written into a cache of its own and rendered by `levain runs show ID --tensorboard DIR`; with
folders, `RUN_FOLDER/tensorboard` is compared with `RUN_FOLDER/events.jsonl` (runs of the cache: `cache/runs/ID`).
"""

import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

assert tensorboard.__version__ == "2.21.0", f"tensorboard {tensorboard.__version__}, wanted 2.21.0"
EVERYTHING = {"scalars": 0, "tensors": 0}


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def compare(folder, log):
    """Every number and text of the log stands in the files, with its step and time, and nothing else does."""
    numbers, texts = {}, {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        stage = event.get("stage")
        if event["event"] == "metrics":
            for tag, value in event["values"].items():
                numbers.setdefault((stage, tag), []).append((event["step"], float32(value), event["at"]))
        if event["event"] == "sample":
            texts.setdefault((stage, event["title"]), []).append(event["text"])
    stages = {stage for stage, _ in [*numbers, *texts]}
    assert stages, f"{log}: no numbers and no texts, so nothing is shown by this test"
    for stage in sorted(stages):
        accumulator = EventAccumulator(str(folder / stage.replace(" › ", ".")), size_guidance=EVERYTHING)
        accumulator.Reload()
        tags = accumulator.Tags()
        assert sorted(tags["scalars"]) == sorted(t for s, t in numbers if s == stage), tags["scalars"]
        assert sorted(tags["tensors"]) == sorted(t for s, t in texts if s == stage), tags["tensors"]
        starts = set()
        for tag in tags["scalars"]:
            found = accumulator.Scalars(tag)
            wanted = numbers[stage, tag]
            same = lambda a, b: a == b or math.isnan(a) and math.isnan(b)
            assert len(found) == len(wanted), (tag, len(found), len(wanted))
            for event, (step, value, at) in zip(found, wanted):
                assert event.step == step and same(event.value, value), (tag, event, step, value)
                starts.add(round(event.wall_time - at / 1000, 2))
        assert not starts or max(starts) - min(starts) <= 0.02, f"times do not agree: {starts}"
        for tag in tags["tensors"]:
            metadata = accumulator.SummaryMetadata(tag)
            assert metadata.plugin_data.plugin_name == "text", metadata
            found = [event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors(tag)]
            assert found == texts[stage, tag], (found, texts[stage, tag])
    print(f"tensorboard reads {folder}: {len(numbers)} scalars and {len(texts)} texts of {len(stages)} stages agree with the log")


def small_log(folder):
    events = [{"at": 0, "event": "planned", "recipe": "tiny", "stages": [["sft", "will_run"]]}]
    for step in range(50):
        values = {"loss": 3.0 / (step + 1), "learning_rate": 2e-4 * (1 - step / 50), "tiny": 1e-30 * step, "negative": -float(step)}
        events.append({"at": 10 + 137 * step, "stage": "sft", "event": "metrics", "step": step * 1000, "values": values})
    events.append({"at": 9000, "stage": "sft › tokens", "event": "metrics", "step": 2**40, "values": {"rows": 17.0}})
    for text in ["first: ünïcode", "second\n\n| a | b |\n|---|---|\n| 1 | 2 |"]:
        events.append({"at": 9100, "stage": "sft", "event": "sample", "title": "answers/1", "text": text})
    events.append({"at": 9200, "event": "ended", "ran": 1, "hits": 0, "failed": 0, "waiting": 0, "skipped": 0, "milliseconds": 9200})
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in events))


def main():
    if folders := [pathlib.Path(a) for a in sys.argv[1:]]:
        for folder in folders:
            compare(folder / "tensorboard", folder / "events.jsonl")
        return
    levain = os.environ.get("LEVAIN", "target/release/levain")
    with tempfile.TemporaryDirectory() as name:
        cache = pathlib.Path(name) / "cache"
        run = cache / "runs" / "1700000000000-tiny-1"
        small_log(run)
        (cache / "entries").mkdir()
        out = pathlib.Path(name) / "out"
        subprocess.run([levain, "--cache", cache, "runs", "show", run.name, "--tensorboard", out], check=True)
        compare(out, run / "events.jsonl")


main()
