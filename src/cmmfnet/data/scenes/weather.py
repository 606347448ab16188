"""Weather of a scene: sun, sky and clouds, and the temperatures of all kinds of things."""

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.shading import Light
from cmmfnet.data.scenes.sprites import linear


def make_light(rng, lighting: str, heading: float, snow: bool) -> Light:
    """Sun, sky and weather. heading: yaw of the camera, which looks away from the sun more often
    than not."""
    sky = str(rng.choice(["clear", "cloudy", "overcast"], p=[0.4, 0.35, 0.25]))
    side = rng.uniform(35, 160) * rng.choice([-1, 1])
    azimuth = np.deg2rad(side) - heading  # clockwise from +y, relative to where the camera looks
    height = np.deg2rad(
        {"day": rng.uniform(22, 58), "dusk": rng.uniform(2, 6), "night": 30}[lighting]
    )
    sun = np.array(
        [np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height), np.sin(height)]
    )
    warm = np.clip((np.rad2deg(height) - 5) / 35, 0, 1)
    colour = np.array([1.0, 0.84 + 0.11 * warm, 0.66 + 0.2 * warm])
    cover = {
        "clear": rng.choice([0.0, 0.12]),
        "cloudy": rng.uniform(0.38, 0.68),
        "overcast": rng.uniform(0.92, 1.1),
    }[sky]
    if lighting == "day":
        strength = {"clear": 1.35, "cloudy": rng.choice([1.25, 0.75]), "overcast": 0.0}[sky]
        ambient = {
            "clear": np.array([0.36, 0.41, 0.50]),
            "cloudy": np.array([0.46, 0.49, 0.54]),
        }.get(sky, np.array([0.86, 0.88, 0.92]))
        zenith = linear(*[(86, 136, 196), (104, 150, 204), (76, 122, 186)][rng.integers(3)]) * 1.1
        horizon = linear(206, 218, 228) * rng.uniform(0.9, 1.2)
        if sky == "overcast":
            zenith, horizon = linear(196, 202, 210), linear(222, 224, 226) * 1.1
        glow, exposure = np.array([0.6, 0.52, 0.42]), rng.uniform(0.72, 0.98)
    elif lighting == "dusk":
        strength = {"clear": 0.5, "cloudy": 0.25, "overcast": 0.0}[sky]
        ambient = np.array([0.20, 0.22, 0.29])
        zenith, horizon = linear(80, 116, 156) * 0.7, linear(224, 190, 156) * rng.uniform(0.5, 0.8)
        if sky == "overcast":
            zenith, horizon = linear(104, 112, 128) * 0.7, linear(150, 152, 160) * 0.7
        colour = np.array([1.0, 0.6, 0.32])
        glow, exposure = np.array([0.6, 0.36, 0.16]), rng.uniform(1.25, 1.65)
    else:
        strength = 0.0
        ambient = np.array([0.03, 0.03, 0.036]) * rng.uniform(0.6, 2.0)
        zenith, horizon = linear(12, 16, 30) * 0.7, linear(52, 48, 54) * rng.uniform(0.4, 1)
        glow, exposure = np.zeros(3), rng.uniform(2.6, 3.6)  # a camera opens at night
    hills = []
    if rng.random() < 0.35:
        for k in range(6):
            hills.append(
                (
                    rng.uniform(0.3, 1) * 0.034 / (k + 1),
                    rng.uniform(0.7, 1.4) * (2 + 3 * k),
                    rng.uniform(0, 6.3),
                    0,
                )
            )
        hills.append((rng.uniform(0.02, 0.05), 0, np.pi / 2, 0))
    if rng.random() < 0.4:
        hills += [(rng.uniform(0.03, 0.07), 0, np.pi / 2, 1), (0.015, 5, rng.uniform(0, 6), 1)]
    for k in range(5):
        hills.append((0.009 / (k + 1), rng.uniform(3, 6) * (k + 1), rng.uniform(0, 6.3), 2))
    hills.append((rng.uniform(0.004, 0.02), 0, np.pi / 2, 2))
    drop = {
        "clear": rng.uniform(7, 15),
        "cloudy": rng.uniform(5, 10),
        "overcast": rng.uniform(1.5, 5),
    }[sky]
    insolation = {
        "day": {"clear": 1.0, "cloudy": 0.7, "overcast": 0.22}[sky],
        "dusk": 0.12,
        "night": 0.0,
    }[lighting]
    haze = float(np.exp(rng.uniform(np.log(350), np.log(1800))))
    lit = lighting != "night" and strength > 0
    return Light(
        lighting, sky, sun if lit else None, (colour * strength).astype(np.float32),
        ambient.astype(np.float32),
        zenith.astype(np.float32), horizon.astype(np.float32), glow.astype(np.float32), haze,
        float(exposure),
        float(cover), float(drop), insolation, rng.uniform(0, 40, 2).astype(np.float32),
        np.array(hills, np.float32),
        float(snow),
    )  # fmt: skip


def make_climate(rng, light: Light) -> m.Climate:
    """Draw the temperatures of this scene. Physics gives the order of the things from cold to warm,
    the scene's random numbers give the amounts."""
    night, day = light.lighting == "night", light.lighting == "day"
    air = rng.uniform(283, 301) if not light.snow else rng.uniform(267, 273)
    clear = {"clear": 1.0, "cloudy": 0.55, "overcast": 0.15}[light.sky]
    u = rng.uniform
    heat = {
        "road": u(10, 20), "paving": u(8, 16), "grass": u(3, 9), "dirt": u(8, 18), "wall": u(6, 15),
        "roof": u(12, 26), "metal": u(5, 14), "rubber": u(5, 10), "pole": u(3, 8), "wood": u(7, 16),
        "water": u(0, 1.5), "leaf": u(1, 4.5),
    }  # fmt: skip
    base = {
        "road": u(-0.5, 2), "paving": u(-1, 1.5), "grass": u(-2, 0.5), "dirt": u(-1, 1),
        "wall": u(-2, 1.5),
        "roof": u(-2, 1), "metal": u(-1, 1), "rubber": u(0, 2), "pole": u(-1, 1), "wood": u(-1, 1),
        "water": u(-5, -1), "leaf": u(-1.5, 0.5),
    }  # fmt: skip
    if not day:  # stored heat in stone, radiative cooling of thin and insulated things
        late = {
            "road": u(2, 6),
            "paving": u(1, 4),
            "wall": u(1.5, 5),
            "grass": -2.5,
            "roof": -u(2, 6),
            "metal": -u(1, 4),
            "pole": -1,
            "wood": -1.5,
        }
        late |= {"water": u(3, 7), "dirt": 0.5, "rubber": 0, "leaf": 0.5}
        base = {
            k: x + late[k] * (clear if late[k] < 0 else 1) * (1 if night else 0.8)
            for k, x in base.items()
        }
    return m.Climate(
        float(air), {k: float(x) for k, x in base.items()}, {k: float(x) for k, x in heat.items()}
    )
