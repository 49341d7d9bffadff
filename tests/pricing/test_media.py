"""Images and speech cost what the reference's tables say."""

from __future__ import annotations

from fractions import Fraction

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.pricing import Price, Ratios, image_quota, load_defaults, speech_quota, transcription_quota


@pytest.fixture
def ratios() -> Ratios:
    return load_defaults()


@pytest.mark.parametrize(
    ("model", "size", "quality", "quota"),
    [
        ("dall-e-2", "256x256", "standard", 10_000),
        ("dall-e-2", "512x512", "standard", 11_250),
        ("dall-e-2", "1024x1024", "standard", 12_500),
        ("dall-e-2", "1024x1024", "hd", 12_500),
        ("dall-e-3", "1024x1024", "standard", 20_000),
        ("dall-e-3", "1024x1792", "standard", 40_000),
        ("dall-e-3", "1792x1024", "standard", 40_000),
        ("dall-e-3", "1024x1024", "hd", 40_000),
        ("dall-e-3", "1024x1792", "hd", 60_000),
        ("dall-e-3", "1792x1024", "hd", 60_000),
        ("cogview-3", "999x999", "standard", 7_100),
        ("cogview-3-flash", "1024x1024", "standard", 0),
    ],
)
def test_an_image_costs_what_model_size_and_quality_say(
    ratios: Ratios, model: str, size: str, quality: str, quota: int
) -> None:
    price = ratios.price(group="default", model=model)

    assert image_quota(price, size=size, quality=quality) == quota


def test_images_cost_by_the_piece_and_are_cut_off_before_they_are_counted() -> None:
    price = Price("dall-e-2", "g", Fraction(10), Fraction(1), Fraction(1, 3))

    assert image_quota(price, size="256x256", n=10) == 33_330


def test_an_image_of_a_priced_model_costs_at_least_one() -> None:
    assert image_quota(Price("m", "g", Fraction(1, 10**6), Fraction(1), Fraction(1))) == 1


@pytest.mark.parametrize(("model", "n"), [("dall-e-2", 11), ("dall-e-3", 2), ("dall-e-2", 0), ("cogview-3", -1)])
def test_more_images_than_the_model_draws_are_refused(ratios: Ratios, model: str, n: int) -> None:
    with pytest.raises(InvalidRequest, match="n must be"):
        image_quota(ratios.price(group="default", model=model), n=n)


def test_the_most_images_of_a_model_are_accepted(ratios: Ratios) -> None:
    assert image_quota(ratios.price(group="default", model="dall-e-2"), n=10) == 125_000


def test_a_size_the_model_does_not_draw_is_refused(ratios: Ratios) -> None:
    with pytest.raises(InvalidRequest, match="its sizes are 1024x1024"):
        image_quota(ratios.price(group="default", model="dall-e-3"), size="256x256")


def test_speech_costs_by_the_character(ratios: Ratios) -> None:
    assert speech_quota(ratios.price(group="default", model="tts-1"), characters=101) == 758  # 757.5


def test_a_transcript_costs_its_ratio(ratios: Ratios) -> None:
    assert transcription_quota(ratios.price(group="default", model="whisper-1"), transcript_tokens=200) == 3000
