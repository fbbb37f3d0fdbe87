"""What the scripts of tests/interop share."""
