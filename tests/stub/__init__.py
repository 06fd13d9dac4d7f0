"""A server that replays what a real vLLM said, honestly or with lies: what `verify` must not be fooled by.

`python -m tests.stub --lie NAME --port N` starts it; `python -m tests.stub.record URL` makes the recording.
"""
