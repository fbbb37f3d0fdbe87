"""What setup.py, interop.py and demo.py share: places, pins, fetching, and folders that appear whole or not at all.

Only Python's standard library (3.9 or newer) and pip as a program are used.
"""
