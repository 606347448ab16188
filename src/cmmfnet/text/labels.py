"""Classes of label maps: their names, the COCO-Stuff names that they stand for, and the words that
name them."""

from __future__ import annotations

CLASSES: tuple[str, ...] = (
    "unlabelled", "sky", "building", "wall", "fence", "pole", "road", "pavement", "vegetation",
    "grass", "terrain",
    "mountain", "water", "snow", "car", "truck", "bus", "person", "bicycle", "sign",
    "traffic light", "window",
    "door", "roof", "other",
)  # fmt: skip
COCOSTUFF: dict[str, str | None] = {
    "unlabelled": None, "sky": "sky-other", "building": "building-other", "wall": "wall-concrete",
    "fence": "fence",
    "pole": "metal", "road": "road", "pavement": "pavement", "vegetation": "tree", "grass": "grass",
    "terrain": "dirt", "mountain": "mountain", "water": "water-other", "snow": "snow", "car": "car",
    "truck": "truck",
    "bus": "bus", "person": "person", "bicycle": "bicycle", "sign": "banner",
    "traffic light": "traffic light",
    "window": "window-other", "door": "door-stuff", "roof": "roof", "other": None,
}  # fmt: skip
"""Class -> the nearest COCO-Stuff name, or None."""
IGNORE = 255
"""The id of pixels without a label in a label map (H, W) uint8."""

_PLACES = """
sky: sky-other clouds
building: building-other house skyscraper
wall: wall-concrete wall-brick wall-stone wall-wood wall-panel wall-tile wall-other house
fence: fence railing
pole: metal
road: road
pavement: pavement
vegetation: tree bush leaves branch plant-other flower
grass: grass playingfield
terrain: dirt ground-other gravel sand mud
mountain: mountain hill
water: water-other river sea
snow: snow
car: car
truck: truck
bus: bus
person: person clothes
bicycle: bicycle motorcycle
sign: banner
traffic light: traffic light
window: window-other window-blind
door: door-stuff
roof: roof
"""


def _places() -> dict[str, tuple[int, ...]]:
    table: dict[str, list[int]] = {}
    for line in _PLACES.strip().splitlines():
        class_name, names = line.split(": ")
        for name in ["traffic light"] if class_name == "traffic light" else names.split():
            table.setdefault(name, []).append(CLASSES.index(class_name))
    return {name: tuple(ids) for name, ids in table.items()}


PLACES: dict[str, tuple[int, ...]] = _places()
"""Name -> the classes (indices into CLASSES) that it names."""
_CLASS = {name: i for i, name in enumerate(CLASSES)}
CLAIMS: dict[str, tuple[int, ...]] = {
    "snow": tuple(_CLASS[name] for name in ("grass", "terrain", "road", "pavement", "roof")),
    "grass": (_CLASS["terrain"],), "dirt": (_CLASS["grass"],), "sand": (_CLASS["grass"],),
    "wall-brick": (_CLASS["building"],), "wall-stone": (_CLASS["building"],),
    "wall-wood": (_CLASS["building"],),
}  # fmt: skip
"""Name -> further classes that it covers if no word in the text names them: snow covers grass,
roads and roofs."""
