"""Pinned packages are installed once; what was not finished is not believed; overlays go before what an environment has."""

import base64
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import interop
from levain_setup import places
from levain_setup.environment import STAMP, Environment, Overlay, Packages, packages_folder, pip_of, version_of
from levain_setup.say import FAILED, NO_ROOM, NOT_FETCHED, USAGE, Problem

HERE = sys.version_info[:2]
VARIABLE = "LEVAIN_TEST_PACKAGES"


def wheel(folder, name, version):
    """A wheel with one module, which knows its version."""
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{name}-{version}.dist-info/RECORD"] = record + f"{name}-{version}.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


class Kept(unittest.TestCase):
    """A cache directory of its own, and an index that is a folder with two versions of a package."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for version in ("1.0", "2.0"):
            wheel(self.folder, "levain_dough", version)
        settings = {
            "LEVAIN_HOME": str(self.folder / "home"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
        }
        patch = mock.patch.dict(os.environ, settings)
        patch.start()
        self.addCleanup(patch.stop)
        os.environ.pop(VARIABLE, None)
        self.requirements = self.folder / "requirements.txt"
        self.require("1.0")
        self.output = io.StringIO()

    def require(self, version):
        self.requirements.write_text(f"# one package\nlevain_dough=={version}\n")

    def packages(self, kind=Packages, **others):
        return kind(requirements=self.requirements, variable=VARIABLE, cost="little", disk=1000, **others)

    def prepared(self, overlay):
        with redirect_stdout(self.output):
            return overlay.prepare(Path(sys.executable))

    def imported(self, python, *path):
        """The version of the package that a Python finds."""
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        for folder in path:
            environment = interop.found_first(folder, environment)
        command = [str(python), "-c", "import levain_dough; print(levain_dough.VERSION)"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def test_folders(self):
        one, two = (packages_folder(HERE, text) for text in (b"a==1\n", b"a==2\n"))
        self.assertNotEqual(one, two, "other pins, another folder")
        self.assertNotEqual(one, packages_folder((3, 99), b"a==1\n"), "another Python, another folder")
        self.assertEqual(one, packages_folder(HERE, b"a==1\n"))
        self.assertEqual(one.parent, self.folder / "home" / "venv")
        self.assertEqual(version_of(Path(sys.executable)), HERE)

    def test_what_was_not_finished_is_made_anew(self):
        packages, folder, made = self.packages(), self.folder / "home" / "venv" / "set", []

        def make():
            made.append(folder.exists())
            folder.mkdir()
            (folder / f"file {len(made)}").touch()
            if len(made) == 1:
                raise KeyboardInterrupt

        with redirect_stdout(self.output):
            with self.assertRaises(KeyboardInterrupt):
                packages.once(folder, make)
            self.assertFalse(packages.is_whole(folder))
            packages.once(folder, make)
            packages.once(folder, make)
        self.assertEqual(made, [False, False], "the second time what lay there was removed, the third time it was whole")
        self.assertEqual(sorted(path.name for path in folder.iterdir()), [STAMP, "file 2"])
        self.assertEqual(sorted(path.name for path in folder.parent.iterdir()), [".lock", "set"])
        self.assertIn("(1, little) go once to", self.output.getvalue())
        self.assertIn("never finished", self.output.getvalue())

    def test_a_full_disk_is_told_before(self):
        packages = Packages(self.requirements, VARIABLE, "much", disk=10**18)
        with redirect_stdout(self.output), self.assertRaises(Problem) as caught:
            packages.once(self.folder / "home" / "venv" / "set", lambda: self.fail("it was begun"))
        self.assertEqual(caught.exception.code, NO_ROOM)

    def test_an_overlay_goes_first(self):
        below = self.prepared(self.packages(Overlay))
        self.assertEqual(below, packages_folder(HERE, self.requirements.read_bytes()))
        self.require("2.0")
        above = self.prepared(self.packages(Overlay))
        self.assertNotEqual(below, above)
        self.assertEqual(self.imported(sys.executable, below), "1.0")
        self.assertEqual(self.imported(sys.executable, below, above), "2.0")
        said = self.output.getvalue()
        (self.folder / "levain_dough-2.0-py3-none-any.whl").unlink()
        self.assertEqual(self.prepared(self.packages(Overlay)), above)
        self.assertEqual(self.output.getvalue(), said, "nothing is fetched and nothing said the second time")

    def test_an_overlay_that_cannot_be_fetched(self):
        self.require("3.0")
        overlay = self.packages(Overlay)
        for _ in range(2):
            with self.assertRaises(Problem) as caught:
                self.prepared(overlay)
            self.assertEqual(caught.exception.code, NOT_FETCHED)
            for words in ("levain_dough==3.0", "check the network", f"{VARIABLE}=/path", "requirements.txt"):
                self.assertIn(words, str(caught.exception))
        folder = packages_folder(HERE, self.requirements.read_bytes())
        self.assertFalse(overlay.is_whole(folder))
        left = [path.name for path in folder.parent.iterdir() if path not in (folder, folder.parent / ".lock")]
        self.assertEqual(left, [], "pip's temporary files are removed")

    def test_folders_of_ones_own(self):
        overlay = self.packages(Overlay)
        environment = self.packages(Environment, target="make test")
        own = self.folder / "own"
        with mock.patch.dict(os.environ, {VARIABLE: str(own)}), redirect_stdout(self.output):
            for prepare in (lambda: overlay.prepare(Path(sys.executable)), environment.prepare):
                with self.assertRaises(Problem) as caught:
                    prepare()
                self.assertEqual(caught.exception.code, USAGE)
                self.assertIn(f"{VARIABLE} names {own}", str(caught.exception))
            (own / "bin").mkdir(parents=True)
            (own / "bin" / "python").symlink_to(sys.executable)
            self.assertEqual(overlay.prepare(Path(sys.executable)), own)
            self.assertEqual(environment.prepare(), own / "bin" / "python")
        self.assertFalse((self.folder / "home").exists())

    def test_an_environment_without_its_python_is_made_anew(self):
        environment = self.packages(Environment, target="make test")
        folder = self.folder / "environment"
        (folder / "bin").mkdir(parents=True)
        (folder / STAMP).touch()
        (folder / "bin" / "python").symlink_to(self.folder / "gone")
        self.assertFalse(environment.is_whole(folder))
        (folder / "bin" / "python").unlink()
        (folder / "bin" / "python").symlink_to(sys.executable)
        self.assertTrue(environment.is_whole(folder))

    @unittest.skipIf(HERE < (3, 11), "the pip of older ones, which make no environments, may not know `--python`")
    def test_a_python_without_pip_borrows_one(self):
        self.assertEqual(pip_of(Path(sys.executable), "other"), [sys.executable, "-m", "pip"])
        bare = self.folder / "bare"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
        python = bare / "bin" / "python"
        self.assertEqual(pip_of(python, "other"), ["other", "-m", "pip", "--python", str(python)])
        with redirect_stdout(self.output):
            folder = self.packages(Overlay).prepare(python)
        self.assertEqual(self.imported(python, folder), "1.0")

    def test_a_python_that_does_not_run(self):
        broken = self.folder / "python"
        broken.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
        broken.chmod(0o755)
        with self.assertRaises(Problem) as caught:
            version_of(broken)
        self.assertEqual(caught.exception.code, FAILED)
        self.assertIn("no such library", str(caught.exception))


class Interop(unittest.TestCase):
    def test_pins(self):
        """Every list of packages pins each of them once; every overlay belongs to a script and changes something."""
        lists = sorted(interop.FOLDER.glob("*requirements.txt"))
        self.assertIn(interop.ENVIRONMENT.requirements, lists)
        pins = {}
        for path in lists:
            lines = [line.split(";")[0] for line in path.read_text().splitlines() if line and not line.startswith("#")]
            pins[path] = dict(line.split("==") for line in lines)
            self.assertEqual(len(pins[path]), len(lines), path)
        below = pins.pop(interop.ENVIRONMENT.requirements)
        scripts = interop.scripts([])
        owners = {overlay.requirements for overlay in map(interop.overlay, scripts) if overlay}
        self.assertEqual(owners, set(pins))
        for path, above in pins.items():
            for name, version in above.items():
                self.assertNotEqual(below.get(name), version, f"{path}: {name} is there already")

    def test_the_path_of_modules(self):
        folder = places.CHECKOUT / "over"
        self.assertEqual(interop.found_first(folder, {"A": "b"}), {"A": "b", "PYTHONPATH": str(folder)})
        path = interop.found_first(folder, {"PYTHONPATH": "/mine"})["PYTHONPATH"]
        self.assertEqual(path, f"{folder}{os.pathsep}/mine")
