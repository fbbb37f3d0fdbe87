"""Folders appear whole or not at all; damage is found; locks free themselves; links move in one step."""

import io
import multiprocessing
import os
import signal
import tempfile
import time
import unittest
from contextlib import redirect_stdout
from pathlib import Path

from levain_setup import store
from levain_setup.fetch import sha256_of
from levain_setup.say import Problem, Progress, duration, size


def hold(path, ready):
    """Take the lock, say so, and sleep with it."""
    with redirect_stdout(io.StringIO()), store.lock(path, "testing"):
        ready.set()
        time.sleep(60)


class Store(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.parent = Path(folder.name)
        self.target = self.parent / "set"

    def publish(self, text="one"):
        private = self.parent / f"{store.PRIVATE}{text}"
        private.mkdir()
        (private / "file").write_text(text)
        record = {"sha256": sha256_of(private / "file"), "bytes": len(text)}
        with redirect_stdout(io.StringIO()):
            store.publish(private, self.target, {"files": {"file": record}})

    def test_published_folders_are_whole(self):
        self.assertTrue(store.faults(self.target, deep=False), "absent")
        self.publish()
        self.assertEqual(store.faults(self.target, deep=True), [])

    def test_the_second_keeps_the_first(self):
        self.publish("one")
        self.publish("two")
        self.assertEqual((self.target / "file").read_text(), "one")
        self.assertEqual([entry.name for entry in self.parent.iterdir()], ["set"])

    def test_damage(self):
        self.publish()
        (self.target / "file").write_text("ono")
        self.assertEqual(store.faults(self.target, deep=False), [], "a size tells nothing here")
        self.assertIn("sha256", store.faults(self.target, deep=True)[0])
        (self.target / "file").write_text("")
        self.assertIn("0 bytes, should be 3", store.faults(self.target, deep=False)[0])
        (self.target / "file").unlink()
        self.assertIn("No such file", store.faults(self.target, deep=False)[0])
        for text in ("", "{", "[]", '{"files": []}', '{"files": {"file": {}}}'):
            (self.target / store.MANIFEST).write_text(text)
            self.assertIn("cannot be read", store.faults(self.target, deep=False)[0])

    def test_leftovers_are_swept(self):
        self.publish()
        for name in (f"{store.PRIVATE}x", f"{store.DOOMED}y", ".download-z"):
            (self.parent / name / "deep").mkdir(parents=True)
        store.sweep(self.parent)
        self.assertEqual([entry.name for entry in self.parent.iterdir()], ["set"])
        store.remove(self.target)
        self.assertEqual(list(self.parent.iterdir()), [])

    def test_a_lock_is_free_when_its_holder_was_killed(self):
        path = self.parent / ".lock"
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        process = context.Process(target=hold, args=(path, ready))
        process.start()
        self.assertTrue(ready.wait(10))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        output = io.StringIO()
        with redirect_stdout(output), store.lock(path, "testing"):
            pass
        self.assertNotIn("waiting", output.getvalue())

    def test_links(self):
        link = self.parent / "link"
        self.assertTrue(store.lay_link(link, self.target))
        self.assertFalse(store.lay_link(link, self.target))
        self.assertTrue(store.lay_link(link, self.parent))
        self.assertEqual(os.readlink(link), str(self.parent))
        os.unlink(link)
        link.mkdir()
        with self.assertRaisesRegex(Problem, "in the way"):
            store.lay_link(link, self.target)


class Words(unittest.TestCase):
    def test_sizes_and_times(self):
        self.assertEqual([size(n) for n in (0, 999, 2_243_632, 526_605_292, 1_200_000_000)],
                         ["0 B", "999 B", "2.2 MB", "527 MB", "1.2 GB"])
        self.assertEqual([duration(s) for s in (0.04, 9.94, 48.4, 185)], ["0.0 s", "9.9 s", "48 s", "3 min 05 s"])

    def test_progress(self):
        progress = Progress("torch", 500_000_000)
        self.assertEqual(progress.line(100_000_000, 4.0), "  torch: 100 MB of 500 MB (20%), 25 MB/s, 16 s left")
        self.assertEqual(progress.line(55, 4.0), "  torch: waiting for the first data, 4.0 s")
        self.assertEqual(Progress("x", None).line(2_000_000, 1.0), "  x: 2.0 MB, 2.0 MB/s")

    def test_problems(self):
        text = str(Problem(3, "what", "why one\nwhy two", "do"))
        self.assertEqual(text, "error: what\n  why: why one\n       why two\n  what to do: do")
