"""What requests cost: no server is asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from billing_tasks import Bookkeeper
from tests.releases.play import Play

MODELS = (
    *(
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4",
        "gpt-3.5-turbo",
        "gpt-4-32k",
        "gpt-4-turbo",
        "o1",
        "o1-mini",
        "chatgpt-4o-latest",
    ),
    *("claude-3-opus-20240229", "claude-3-5-sonnet-20241022", "claude-3-haiku-20240307", "claude-instant-1.2"),
    *(
        "gemini-1.5-pro",
        "deepseek-chat",
        "qwen-turbo",
        "llama3-70b-8192",
        "mistral-large-latest",
        "text-embedding-3-small",
    ),
    *("whisper-1", "command-r-plus", "an-unlisted-model", "gpt-4-of-tomorrow", "gpt-3.5-of-tomorrow"),
)
GROUPS = ("default", "vip", "svip", "a group that is not listed")
#: prompt and completion tokens
TOKENS = ((0, 0), (1, 0), (0, 1), (374, 44), (1_000, 1_000), (131_072, 4_096))


def _quote(play: Play, price: Any) -> None:
    play.say(
        call="quota and estimate",
        arguments={"model": price.model, "group": price.group},
        quota={f"{prompt}+{completion}": price.quota(prompt, completion) for prompt, completion in TOKENS},
        estimate={f"{prompt}": price.estimate(prompt) for prompt, _ in TOKENS},
        estimate_with_max={f"{prompt}, {most}": price.estimate(prompt, most) for prompt, most in TOKENS},
    )


def prices(play: Play) -> None:
    """The table that ships with the package."""
    for model in MODELS:
        price = play.price(model=model)
        _quote(play, price)
        play.ask("model_ratio", model=model)
        play.ask("completion_ratio", model=model)
        play.ask("ratio", group="vip", model=model)
    for group in GROUPS:
        play.ask("group_ratio", group=group)
        _quote(play, play.price(model="gpt-4o", group=group))
    for channel_type in (None, 1, 14, 33):
        play.price(model="claude-3-opus-20240229", channel_type=channel_type)
    for arguments in ({"model": ""}, {"model": "gpt-4o", "group": "g" * 300}, {"model": "nul\x00"}, {"model": 4}):
        play.price(**arguments)
    price = play.price(model="gpt-4o")
    for prompt, completion in ((-1, 0), (0, -1), (True, 0), (1.5, 0), (2**40 + 1, 0), ("7", 0), (2**40, 2**40)):
        play.calling("price.quota", {"tokens": [prompt, completion]}, lambda p=prompt, c=completion: price.quota(p, c))
        play.calling(
            "price.estimate", {"tokens": [prompt, completion]}, lambda p=prompt, c=completion: price.estimate(p, c)
        )
    play.end()


RATIOS = """
[model]
"gpt-4o" = 1.25
"my-model" = "2.75/0.65"
"my-model(33)" = 4
"free-model" = 0

[completion]
"my-model" = 4

[group]
vip = "0.9"
free = 0
"""


def own_ratios(play: Play) -> None:
    """An operator's own table over it, and one that can't be used."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "ratios.toml")
        play.names.call(str(file), "ratios file")
        file.write_text(RATIOS)
        with play.another(Bookkeeper, ratios_file=file) as door:
            for model, group, channel_type in (
                ("gpt-4o", "default", None),
                ("gpt-4o", "vip", None),
                ("my-model", "default", None),
                ("my-model", "vip", None),
                ("my-model", "default", 33),
                ("free-model", "default", None),
                ("gpt-4o", "free", None),
                ("gpt-4", "default", None),
            ):
                arguments = {"model": model, "group": group, "channel_type": channel_type}
                price = play.calling("price", arguments, lambda given=arguments: door.price(**given))
                _quote(play, price)
        for bad in ('[model]\n"gpt-4o" = -1\n', '[model]\n"gpt-4o" = "many"\n', "[modell]\n", "no toml"):
            file.write_text(bad)
            play.calling("from_settings", {"ratios": bad}, lambda: _open(play, file))
    play.end()


def _open(play: Play, file: Path) -> str:
    with play.another(Bookkeeper, ratios_file=file):
        return "opened"
