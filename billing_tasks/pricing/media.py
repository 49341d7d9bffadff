"""Prices of images and speech, in quota. The rules are those of one-api (commit 8df4a26)."""

from __future__ import annotations

from fractions import Fraction

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing.exact import check_count, check_name, check_quota
from billing_tasks.pricing.price import Price

#: How much dearer an image is by its size. A model that is not listed has one price for every size.
SIZE_RATIOS: dict[str, dict[str, Fraction]] = {
    "dall-e-2": {"256x256": Fraction(1), "512x512": Fraction("1.125"), "1024x1024": Fraction("1.25")},
    "dall-e-3": {"1024x1024": Fraction(1), "1024x1792": Fraction(2), "1792x1024": Fraction(2)},
}
#: How many images one request may ask for. A model that is not listed has no limit of its own.
MOST_IMAGES: dict[str, int] = {"dall-e-2": 10, "dall-e-3": 1}
#: An image at ratio 1 and size ratio 1 costs as much as 1,000 tokens.
TOKENS_PER_IMAGE = 1000


def image_quota(price: Price, *, size: str = "1024x1024", quality: str = "standard", n: int = 1) -> int:
    """What `n` images cost, in quota: int(ratio * size_ratio * 1000) * n, cut off per image.

    `ratio` is model ratio times group ratio; "hd" is dearer for dall-e-3 only. At
    least 1 unless the price is free.

    Raises InvalidRequest for a size the model does not draw and for too many images.
    """
    check_name(size, field="size")
    check_name(quality, field="quality")
    most = MOST_IMAGES.get(price.model)
    if check_count(n, field="n") < 1:
        raise InvalidRequest("n must be at least 1, got 0.")
    if most is not None and n > most:
        raise InvalidRequest(f"n must be at most {most} for {price.model}, got {n}.")
    per_image = int(price.ratio * _size_ratio(price.model, size=size, quality=quality) * TOKENS_PER_IMAGE)
    if per_image == 0 and not price.free:
        return 1
    return check_quota(per_image * n)


def _size_ratio(model: str, *, size: str, quality: str) -> Fraction:
    sizes = SIZE_RATIOS.get(model)
    if sizes is None:
        return Fraction(1)
    if size not in sizes:
        raise InvalidRequest(f"{model} does not draw {size!r}; its sizes are {', '.join(sizes)}.")
    if model == "dall-e-3" and quality == "hd":
        return sizes[size] * (2 if size == "1024x1024" else Fraction("1.5"))
    return sizes[size]


def speech_quota(price: Price, *, characters: int) -> int:
    """What it costs to speak a text, in quota: characters * ratio, rounded up. Raises InvalidRequest."""
    return price.quota(check_count(characters, field="characters"), 0)


def transcription_quota(price: Price, *, transcript_tokens: int) -> int:
    """What it cost to write speech down, in quota: tokens of the transcript * ratio, rounded up.

    The reference sets aside with the ratio and forgets it when it settles; this
    is the price with it. Raises InvalidRequest.
    """
    return price.quota(check_count(transcript_tokens, field="transcript_tokens"), 0)
