"""How drawn people look: skin, hair and clothes."""

from __future__ import annotations

from dataclasses import dataclass

from mpn_d2.data.drawn_random import Draws

# BGR.
SKIN = ((205, 220, 250), (170, 195, 240), (140, 175, 225), (110, 150, 205), (75, 110, 165),
         (55, 85, 130), (40, 60, 95), (35, 45, 70))  # fmt: skip
_HAIR = ((25, 25, 30), (30, 40, 60), (40, 70, 110), (90, 160, 210), (160, 165, 170), (40, 60, 140),
         (20, 30, 45))  # fmt: skip

Color = tuple[int, int, int]


@dataclass
class Look:
    """What somebody wears; colours are BGR, 0 to 255."""

    skin: Color
    hair: Color
    top: Color
    stripes: Color | None
    stripes_across: bool
    trousers: Color
    shoes: Color
    sleeves: str  # "long", "short" or "none"
    legs: str  # "long", "short" or "skirt"
    long_hair: bool
    bald: bool


def sample_color(draws: Draws) -> Color:
    """Any colour: bright, dull, dark or light."""
    value = draws.uniform(25, 250)
    tint = draws.choice((0.15, 0.5, 0.9))
    red, green, blue = (int(value * (1 - tint * draws.uniform())) for _ in range(3))
    return red, green, blue


def sample_look(draws: Draws) -> Look:
    """Skin, hair and clothes of somebody."""
    skin = draws.choice(SKIN)
    hair = draws.choice(_HAIR)
    return Look(
        skin=_varied(draws, skin, 12),
        hair=_varied(draws, hair, 12),
        top=sample_color(draws),
        stripes=sample_color(draws) if draws.chance(0.3) else None,
        stripes_across=draws.chance(0.7),
        trousers=sample_color(draws),
        shoes=sample_color(draws),
        sleeves=draws.weighted({"long": 0.45, "short": 0.4, "none": 0.15}),
        legs=draws.weighted({"long": 0.6, "short": 0.28, "skirt": 0.12}),
        long_hair=draws.chance(0.35),
        bald=draws.chance(0.06),
    )


def shaded(color: Color, depth: float) -> Color:
    """Darker on the far side of the body."""
    return scaled(color, 1.0 + min(max(1.2 * depth, -0.25), 0.1))


def scaled(color: Color, factor: float) -> Color:
    """Brighter or darker."""
    red, green, blue = (min(int(c * factor), 255) for c in color)
    return red, green, blue


def _varied(draws: Draws, color: Color, amount: int) -> Color:
    red, green, blue = (min(max(c + draws.integer(-amount, amount), 0), 255) for c in color)
    return red, green, blue
