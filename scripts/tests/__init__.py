"""Tests of the set-up scripts: their pure parts and their folders, without network, in a second."""
