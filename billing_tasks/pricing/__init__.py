"""What a request costs, in quota: ratio tables, family rules and exact prices.

Units: 500,000 quota = 1 USD; ratio 1 = 2 USD per 1M tokens. Quota is an `int`,
a ratio a `Fraction`. No float takes part in an amount, and nothing here speaks
to a server.

    defaults.toml ─┐
    ratios file   ─┼─► RatioTables ─► Ratios ─► Price ─► quota
    set_overrides ─┘        (PriceBook keeps the current PriceList of a process)

    a provider's usage object ─► Usage ─┐
    Sheet, Factors ─► MeterPrice       ─┴─► Bill ─► quota
"""

from billing_tasks.errors import UnknownModel
from billing_tasks.pricing.bill import Bill, Factor, Line
from billing_tasks.pricing.book import PriceBook
from billing_tasks.pricing.catalogue import Catalogue, Listed
from billing_tasks.pricing.changes import Change, check_change
from billing_tasks.pricing.exact import MAX_QUOTA, MAX_TOKENS, check_name, parse_ratio
from billing_tasks.pricing.groups import group_ratio
from billing_tasks.pricing.media import image_quota, speech_quota, transcription_quota
from billing_tasks.pricing.meter_price import MeterPrice
from billing_tasks.pricing.meters import Meter, meter, meters
from billing_tasks.pricing.price import Price, unpacked
from billing_tasks.pricing.price_list import PriceList
from billing_tasks.pricing.ratio_sheet import sheet_of_ratios
from billing_tasks.pricing.ratios import Ratios, load_defaults
from billing_tasks.pricing.readers import STYLES, read_usage
from billing_tasks.pricing.recognize import facts_of, may_say, provider_of
from billing_tasks.pricing.responses import PROVIDERS, Stream, from_response
from billing_tasks.pricing.sheet import Sheet
from billing_tasks.pricing.tables import RatioTables, load_overrides
from billing_tasks.pricing.usage import Usage
from billing_tasks.pricing.used_lists import as_served, remember, remembered

__all__ = [
    "MAX_QUOTA",
    "MAX_TOKENS",
    "PROVIDERS",
    "STYLES",
    "Bill",
    "Catalogue",
    "Change",
    "Factor",
    "Line",
    "Listed",
    "Meter",
    "MeterPrice",
    "Price",
    "PriceBook",
    "PriceList",
    "RatioTables",
    "Ratios",
    "Sheet",
    "Stream",
    "UnknownModel",
    "Usage",
    "as_served",
    "check_change",
    "check_name",
    "facts_of",
    "from_response",
    "group_ratio",
    "image_quota",
    "load_defaults",
    "load_overrides",
    "may_say",
    "meter",
    "meters",
    "parse_ratio",
    "provider_of",
    "read_usage",
    "remember",
    "remembered",
    "sheet_of_ratios",
    "speech_quota",
    "transcription_quota",
    "unpacked",
]
