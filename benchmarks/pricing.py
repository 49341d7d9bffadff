"""What pricing a request takes, in microseconds: no server is asked.

    python -m benchmarks.pricing

The limits are those that a gateway should not notice: 5 for text, 10 for six meters.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable

from benchmarks.posting_then_and_now import SIX_METERS
from billing_tasks.model import priced
from billing_tasks.model.ids import new_request_id
from billing_tasks.pricing import PriceList, Usage

ROUNDS, CALLS = 9, 20_000
CHAT = {"usage": {"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
                  "prompt_tokens_details": {"cached_tokens": 1920},
                  "completion_tokens_details": {"reasoning_tokens": 256}}}  # fmt: skip


def main() -> None:
    """Measure and print."""
    prices = PriceList()
    text, claude = prices.price(model="gpt-5"), prices.price(model="claude-sonnet-4-5")
    usage, request_id = Usage.of(SIX_METERS), new_request_id()
    measured: dict[str, Callable[[], object]] = {
        "look a price up": lambda: prices.price(model="gpt-5", group="default"),
        "quota of text": lambda: text.quota(374, 44),
        "estimate": lambda: text.estimate(374, 512),
        "check six meters": lambda: Usage.of(SIX_METERS),
        "quota of six meters": lambda: claude.quota_of(usage),
        "read an answer": lambda: Usage.from_response(CHAT, provider="openai"),
        "fields of a log, text": lambda: priced.of_text(text, 374, 44),
        "fields of a log, six meters": lambda: priced.of_usage(claude, usage, {}, request_id),
    }
    print(f"{'':28} median   (least to most of {ROUNDS} rounds), microseconds")
    for name, call in measured.items():
        call()
        rounds = [seconds / CALLS * 1e6 for seconds in timeit.repeat(call, number=CALLS, repeat=ROUNDS)]
        print(f"{name:28} {statistics.median(rounds):6.2f}   ({min(rounds):.2f} to {max(rounds):.2f})")


if __name__ == "__main__":
    main()
