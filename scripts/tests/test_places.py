"""Where the cache directory is, and which libtorch a machine gets."""

import unittest
from pathlib import Path

from levain_setup import places
from levain_setup.say import UNSUPPORTED, USAGE, Problem


class Places(unittest.TestCase):
    def test_home(self):
        home = Path.home()
        cases = [
            ({}, "linux", home / ".cache/levain"),
            ({"XDG_CACHE_HOME": "/x"}, "linux", Path("/x/levain")),
            ({"XDG_CACHE_HOME": "relative"}, "linux", home / ".cache/levain"),
            ({"XDG_CACHE_HOME": ""}, "linux", home / ".cache/levain"),
            ({"XDG_CACHE_HOME": "/x"}, "darwin", home / "Library/Caches/levain"),
            ({"LEVAIN_HOME": "/y", "XDG_CACHE_HOME": "/x"}, "linux", Path("/y")),
            ({"LEVAIN_HOME": "~/z"}, "darwin", home / "z"),
            ({"LEVAIN_HOME": "here"}, "linux", Path.cwd() / "here"),
        ]
        for environment, system, expected in cases:
            with self.subTest(environment=environment, system=system):
                self.assertEqual(places.home(environment, system), expected)

    def test_platform(self):
        self.assertEqual(places.platform_name("Linux", "x86_64"), "x86_64-linux")
        self.assertEqual(places.platform_name("Linux", "AMD64"), "x86_64-linux")
        self.assertEqual(places.platform_name("Linux", "aarch64"), "aarch64-linux")
        self.assertEqual(places.platform_name("Darwin", "arm64"), "aarch64-macos")

    def test_backend(self):
        self.assertEqual(places.backend({}, driver=False), "cpu")
        self.assertEqual(places.backend({"LEVAIN_TORCH": "cpu"}, driver=True), "cpu")
        self.assertEqual(places.backend({"LEVAIN_TORCH": "cuda"}, driver=False), "cuda")
        self.assertEqual(places.backend({"LEVAIN_TORCH": ""}, driver=False), "cpu")
        with self.assertRaises(Problem) as caught:
            places.backend({"LEVAIN_TORCH": "gpu"})
        self.assertEqual(caught.exception.code, USAGE)

    def test_old_c_libraries_are_refused(self):
        places.check_libc(("glibc", "2.28"))
        places.check_libc(("glibc", "2.41"))
        for libc in (("glibc", "2.27"), ("", "")):
            with self.assertRaises(Problem) as caught:
                places.check_libc(libc)
            self.assertEqual(caught.exception.code, UNSUPPORTED)
