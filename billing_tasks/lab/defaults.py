"""What `demo`, `up` and `replay` do unless told otherwise. Apart, so that --help loads nothing else of the lab."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE_DIR = Path(".billing")
#: A folder of its own: its users, which have the first ids, are in the way of none that a person types for `up`.
DEMO_STATE_DIR = Path(".billing-demo")

#: Names with a price of their own and their weights: mostly the common ones, a few dear, a few nearly free.
DEFAULT_MIX = "gpt-5=5,gpt-5-mini=4,claude-sonnet-4-5=3,deepseek-chat=2,gemini-2.5-pro=1,grok-4=1"
#: Models whose answers have different parts.
MIXED_MODELS = "gpt-5=5,claude-sonnet-4-5=4,gemini-2.5-flash=3,deepseek-reasoner=2,grok-4=1,gpt-image-1=1"

#: As fast as possible, more in flight only wait for each other. At a speed they wait for the simulated
#: upstream, and too few would hold the trace's clock up.
FLAT_OUT = 16
AT_A_SPEED = 512
