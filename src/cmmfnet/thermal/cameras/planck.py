"""Counts of a FLIR camera into temperatures: Planck's law with the camera's constants, less what
the air, a window and the reflection add.

The formula is the one that FLIR's own tools and exiftool's users apply (Minkina and Dudzik,
*Infrared Thermography: Errors and Uncertainties*, 2009; Tattersall's Thermimage, ``raw2temp``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ZERO = 273.15
"""0 degrees Celsius in kelvin."""


class ConstantsError(ValueError):
    """The constants of a file do not give temperatures; the message names the constant."""


@dataclass(frozen=True)
class Constants:
    """What a camera knows of itself and of its surroundings. Temperatures are in kelvin.

    ``r1``, ``r2``, ``b``, ``f``, ``o``: Planck's law as counts = r1 / (r2 (exp(b/T) - f)) - o.
    ``x``, ``alpha1``, ``alpha2``, ``beta1``, ``beta2``: transmission of the air by distance and
    humidity. ``coldest`` and ``hottest``: the limits between which the sensor can tell
    temperatures apart, NaN where the file gives none.
    """

    r1: float
    r2: float
    b: float
    f: float
    o: float
    emissivity: float = 1.0
    distance: float = 0.0
    reflected: float = ZERO + 20
    air: float = ZERO + 20
    window: float = ZERO + 20
    window_transmission: float = 1.0
    humidity: float = 0.5
    alpha1: float = 0.006569
    alpha2: float = 0.01262
    beta1: float = -0.002276
    beta2: float = -0.00667
    x: float = 1.9
    coldest: float = math.nan
    hottest: float = math.nan

    def check(self) -> None:
        """Raises :class:`ConstantsError` for a constant that no camera has.

        What has no effect is not looked at: what a black body reflects, air of no thickness, a
        window that lets all through.
        """
        idle = {"reflected"} if self.emissivity == 1 else set()
        idle |= {"air", "humidity"} if self.distance == 0 else set()
        idle |= {"window"} if self.window_transmission == 1 else set()
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if name in idle:
                continue
            if not low <= value <= high:  # false for NaN
                raise ConstantsError(
                    f"{name.replace('_', ' ')} is {value:.6g}; expected {low:g} to {high:g}"
                )


_BOUNDS = (
    ("r1", 1e-3, 1e12),
    ("r2", 1e-9, 1e9),
    ("b", 1, 1e5),
    ("f", -100, 100),
    ("o", -1e7, 1e7),
    ("emissivity", 0.01, 1.0001),
    ("distance", 0, 1e5),
    ("reflected", 50, 4000),
    ("air", 100, 1000),
    ("window", 50, 4000),
    ("window_transmission", 0.01, 1.0001),
    ("humidity", 0, 1.0001),
)


def transmission(constants: Constants) -> float:
    """The part of the radiation that the air between object and camera lets through, 0 to 1."""
    if constants.distance == 0:
        return 1.0
    t = constants.air - ZERO
    water = constants.humidity * math.exp(
        1.5587 + 0.06939 * t - 0.00027816 * t**2 + 0.00000068455 * t**3
    )
    # two paths of half the distance each: object to window, window to camera
    root = math.sqrt(constants.distance / 2)
    first = math.exp(-root * (constants.alpha1 + constants.beta1 * math.sqrt(water)))
    second = math.exp(-root * (constants.alpha2 + constants.beta2 * math.sqrt(water)))
    return constants.x * first + (1 - constants.x) * second


def celsius(counts: np.ndarray, constants: Constants) -> np.ndarray:
    """Temperatures of the objects that ``counts`` were measured of.

    Args:
        counts: (H, W) uint8 or uint16.
        constants: of the camera.

    Returns:
        (H, W) float32, degrees Celsius; NaN where a count is below all that the constants explain.

    Raises:
        ConstantsError: a constant that no camera has, or temperatures that the camera cannot
            measure: more than half of the pixels are outside of its range, or have none.
    """
    constants.check()
    try:
        levels = _levels(np.arange(int(counts.max()) + 1, dtype=np.float64), constants)
    except (OverflowError, ValueError) as error:  # of math: constants far apart
        raise ConstantsError(f"they overflow ({error})") from None
    values = levels.astype(np.float32)[counts]
    _check_range(values, constants)
    return values


def _levels(raw: np.ndarray, constants: Constants) -> np.ndarray:
    """(N,) counts -> (N,) degrees Celsius."""
    c = constants

    def planck(kelvin: float) -> float:
        return c.r1 / (c.r2 * (math.exp(c.b / kelvin) - c.f)) - c.o

    tau, e, w = transmission(c), c.emissivity, c.window_transmission
    if not 0.02 <= tau <= 1.1:
        raise ConstantsError(f"the air's transmission is {tau:.3g}; expected 0.02 to 1")
    # what has no effect may be missing in the file
    reflected = planck(c.reflected) if e != 1 else 0.0
    air = planck(c.air) if tau != 1 else 0.0
    window = planck(c.window) if w != 1 else 0.0
    # object, reflection, air before the window, the window itself, air behind it
    signal = (
        raw / (e * tau * w * tau)
        - (1 - e) / e * reflected
        - (1 - tau) / (e * tau) * air
        - (1 - w) / (e * tau * w) * window
        - (1 - tau) / (e * tau * w * tau) * air
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        argument = c.r1 / (c.r2 * (signal + c.o)) + c.f
        kelvin = c.b / np.log(argument)
    good = (signal + c.o > 0) & (argument > 1) & np.isfinite(kelvin)
    return np.where(good, kelvin - ZERO, np.nan)


def _check_range(values: np.ndarray, constants: Constants) -> None:
    finite = values[np.isfinite(values)]
    if finite.size * 2 < values.size:
        raise ConstantsError(f"{values.size - finite.size} of {values.size} pixels get none")
    low, high = constants.coldest - ZERO, constants.hottest - ZERO
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        low, high = -120.0, 3000.0
    median = float(np.median(finite))
    # a clear sky is colder than a camera can tell, and yet no fault
    if not low - 60 <= median <= high + 25:
        raise ConstantsError(
            f"they give {finite.min():.0f} to {finite.max():.0f} C with a median of {median:.0f} C,"
            f" and the camera measures {low:.0f} to {high:.0f} C"
        )
