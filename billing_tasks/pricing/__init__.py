"""What a request costs, in quota: ratio tables, family rules and exact prices.

Units: 500,000 quota = 1 USD; ratio 1 = 2 USD per 1M tokens. Quota is an `int`,
a ratio a `Fraction`. No float takes part in an amount, and nothing here speaks
to a server.

    defaults.toml ─┐
    ratios file   ─┼─► RatioTables ─► Ratios ─► Price ─► quota
    set_overrides ─┘        (RatioBook keeps the current Ratios of a process)
"""

from billing_tasks.pricing.book import RatioBook
from billing_tasks.pricing.exact import MAX_QUOTA, MAX_TOKENS, check_name, parse_ratio
from billing_tasks.pricing.media import image_quota, speech_quota, transcription_quota
from billing_tasks.pricing.price import Price
from billing_tasks.pricing.ratios import Ratios, load_defaults
from billing_tasks.pricing.tables import RatioTables, load_overrides

__all__ = [
    "MAX_QUOTA",
    "MAX_TOKENS",
    "Price",
    "RatioBook",
    "RatioTables",
    "Ratios",
    "check_name",
    "image_quota",
    "load_defaults",
    "load_overrides",
    "parse_ratio",
    "speech_quota",
    "transcription_quota",
]
