"""Used lists: those that requests of this process were priced by, and what was served instead of what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import show
from billing_tasks.pricing.price import Price

if TYPE_CHECKING:
    from billing_tasks.pricing.price_list import PriceList

#: Lists that requests of this process were priced by, the latest last: what was served instead of what was asked for
#: is priced by the same list.
_used: dict[int, PriceList] = {}
_MOST_USED = 16
_used_lock = threading.Lock()


def remember(prices: PriceList) -> None:
    """Keep it at hand for the requests that it has priced."""
    with _used_lock:
        _used.pop(prices.version, None)
        _used[prices.version] = prices
        while len(_used) > _MOST_USED:
            del _used[next(iter(_used))]


def remembered(version: int) -> PriceList | None:
    """A list that `remember` was told of, if it is still at hand."""
    return _used.get(version)


def as_served(price: Price, served: Mapping[str, Any]) -> Price:
    """The price of what was served: another `model`, `group`, `channel_id` or `channel_type`, by the same list.

    Raises InvalidRequest if the list is not at hand, and UnknownModel if it has no price of that model.
    """
    prices = None if price.version is None else remembered(price.version)
    if prices is None:
        raise InvalidRequest(
            f"{show(price.model)} was priced by a list that this process does not have; find the reservation by"
            " Bookkeeper.find_reservation."
        )
    asked = {
        "model": price.model,
        "group": price.group,
        "user_group": price.user_group,
        "facts": price.facts,
        "channel_type": price.channel_type,
        "channel_id": price.channel_id,
        "token_id": price.token_id,
    }
    return prices.price(**{**asked, **served})
