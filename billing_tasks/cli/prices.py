"""price: what a request would cost, and from which ratios."""

from __future__ import annotations

from typing import Annotated

import typer

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.show import console, facts, print_json, usd


def price(
    model: Annotated[str, typer.Argument(help="As the gateway names it.", show_default=False)],
    prompt_tokens: Annotated[int, typer.Option("--prompt", min=0, help="Tokens.")] = 1000,
    completion_tokens: Annotated[int, typer.Option("--completion", min=0, help="Tokens.")] = 1000,
    group: Annotated[str, typer.Option(help="The user's group.")] = "default",
    channel_type: Annotated[int | None, typer.Option(help="Some models cost otherwise on one type of channel.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a text request costs. Needs no server."""
    from billing_tasks.pricing import PriceBook
    from billing_tasks.settings import load_settings

    found = PriceBook(**load_settings().price_book).price(group=group, model=model, channel_type=channel_type)
    quota, estimate = found.quota(prompt_tokens, completion_tokens), found.estimate(prompt_tokens, completion_tokens)
    if as_json:
        print_json({**found.to_strings(), "quota": quota, "estimate": estimate})
        return
    console.print(
        facts(
            [
                ("model ratio", f"{found.model_ratio}   (1 = 2 USD per million prompt tokens)"),
                ("completion ratio", str(found.completion_ratio)),
                ("group ratio", f"{found.group_ratio}   ({group})"),
                (
                    "quota",
                    f"{quota:,}   ({usd(quota)}) for {prompt_tokens:,} + {completion_tokens:,} tokens",
                ),
                ("held before the call", f"{estimate:,}   with max_tokens = {completion_tokens:,}"),
            ],
            title=model,
        )
    )
