"""Writes tests/golden/data/tensorboard/events.bin with the `tensorboard` package's own messages and record writer.

Pinned: tensorboard 2.21.0. Run: python tests/golden/make/tensorboard_events.py
"""

from pathlib import Path

import tensorboard
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

PINNED = "2.21.0"
assert tensorboard.__version__ == PINNED, f"tensorboard {tensorboard.__version__}, wanted {PINNED}"

START = 1_700_000_000.0


def scalars(at, step, **values):
    value = [summary_pb2.Summary.Value(tag=tag, simple_value=x) for tag, x in sorted(values.items())]
    return event_pb2.Event(wall_time=START + at, step=step, summary=summary_pb2.Summary(value=value))


def text(at, step, tag, words):
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[words.encode()])
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    return event_pb2.Event(wall_time=START + at, step=step, summary=summary_pb2.Summary(value=[value]))


EVENTS = [
    event_pb2.Event(wall_time=START + 0.5, file_version="brain.Event:2"),
    scalars(0.5, 0, learning_rate=2e-4, loss=2.5),
    scalars(1.5, 300, learning_rate=2e-4, loss=-0.125),
    text(2.0, 0, "answers/1", "**prompt** ünïcode\n\nanswer"),
]

target = Path(__file__).parents[1] / "data" / "tensorboard" / "events.bin"
target.parent.mkdir(parents=True, exist_ok=True)
with open(target, "wb") as file:
    writer = RecordWriter(file)
    for event in EVENTS:
        writer.write(event.SerializeToString(deterministic=True))
    writer.flush()
print(target, target.stat().st_size, "bytes")
