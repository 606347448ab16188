"""Prompts into tags, tags into indices and vectors."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_network import Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.files.errors import UserError
from cmmfnet.methods import build_network
from cmmfnet.text.parser import parse_tags, warn_unknown
from cmmfnet.text.prompt import read_prompt
from cmmfnet.text.sentences import DEFAULT_PROMPT
from cmmfnet.text.tags import load_tag_vectors, tag_ids
from cmmfnet.text.vocabulary import COCO_STUFF, COLOURS, EXTRA_WORDS, WORDS

TABLE = Path(__file__).parents[3] / "shared/weights/clip-vitb16-cocostuff171.safetensors"
PAIRS = Path(__file__).parents[3] / "shared/data/pairs/index.jsonl"


def test_vocabulary():
    assert len(COCO_STUFF) == 171 and len(WORDS) == 177 == len(set(WORDS))
    assert COCO_STUFF[:3] == ("person", "bicycle", "car") and COCO_STUFF[79:82] == (
        "toothbrush",
        "banner",
        "blanket",
    )
    assert WORDS[171:] == EXTRA_WORDS == ("day", "dusk", "night", "clear", "cloudy", "overcast")


@pytest.mark.parametrize(
    "module, unwanted",
    [("cmmfnet.text.sentences", "transformers"), ("cmmfnet.text.parser", "torch")],
)
def test_imports_stay_light(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_name_is_itself():
    for name in WORDS:
        parsed = parse_tags(name)
        assert (parsed.tags, parsed.unknown) == ([name], []), name


@pytest.mark.parametrize(
    "prompt, tags",
    [
        ("", []),
        ("  ,. ", []),
        ("car, wall-brick, sky-other", ["car", "wall-brick", "sky-other"]),
        ("Car; WALL_BRICK\nsky", ["car", "wall-brick", "sky-other"]),
        ("two cars by a brick wall", ["car", "wall-brick"]),
        ("a wall of bricks, a wall made of stone", ["wall-brick", "wall-stone"]),
        ("a brick garden wall before a stone house", ["wall-brick", "house", "wall-stone"]),
        ("people, men, women and children", ["person"]),
        (
            "buses benches leaves knives mice shelves",
            ["bus", "bench", "leaves", "knife", "mouse", "shelf"],
        ),
        ("traffic lights, lights, street lights", ["traffic light", "light"]),
        (
            "fire hydrants, parking meters, wine glasses",
            ["fire hydrant", "parking meter", "wine glass"],
        ),
        ("a glass door and an iron gate by a stone bridge", ["door-stuff", "fence", "bridge"]),
        ("pavement, sidewalk, footpath", ["pavement"]),
        ("lorry truck pickup", ["truck"]),
        ("a taxi, an automobile and other vehicles on the asphalt", ["car", "road"]),
        (
            "hedge, shrub, lawn, mist, soil, pond, river",
            ["bush", "grass", "fog", "dirt", "water-other", "river"],
        ),
        ("a tower block, a block of flats, a high-rise", ["skyscraper"]),
        ("a cyclist and a motorcyclist", ["person", "bicycle", "motorcycle"]),
        ("a tree-lined road with red-roofed houses", ["tree", "road", "roof", "house"]),
        ("cars park along the road near the park", ["car", "road", "tree", "grass"]),
        ("a bus stop by the bus lane", ["structural-other", "road"]),
        ("a ball-shaped bush", ["bush"]),
        ("hot dogs and dogs", ["hot dog", "dog"]),
        ("an orange on a table", ["orange", "table"]),
        ("a car's headlights at night", ["car", "light", "night"]),
        ("in the evening, after dark, in the daytime", ["dusk", "night", "day"]),
        ("a sunny street under a clear sky", ["clear", "road", "sky-other"]),
        ("an overcast sky", ["sky-other", "overcast"]),
        ("blue skies", ["sky-other"]),
        ("a couple of cars, a couple on a bench", ["car", "person", "bench"]),
    ],
)
def test_tags(prompt, tags):
    assert parse_tags(prompt).tags == tags


AS_USERS_WRITE = [
    ("Plastic by day", "plastic, day"),
    ("metal after dark, plastic in the dark", "metal, night, plastic"),
    (
        "pavement, sidewalk, hedges, bushes, lawns, grass, mists, fogs, lorries, trucks",
        "pavement, bush, grass, fog, truck",
    ),
    ("a man, a woman, two pedestrians, three children and persons", "person"),
    ("two pedestrians crossing the road at a pedestrian crossing", "person, road"),
    (
        "trafficlights, parkinglots, brickwalls and firehydrants",
        "traffic light, road, wall-brick, fire hydrant",
    ),
    ("side walks and sky scrapers", "pavement, skyscraper"),
    ("canoes, minibuses, scarves, workmen", "boat, bus, clothes, person"),
    ("a house made of wood", "house, wall-wood"),
    (
        "sunny day, blue sky, green lawn and a red brick house",
        "clear, day, sky-other, grass, house, wall-brick",
    ),
    ("a snowy street at night with parked cars", "snow, road, night, car"),
    ("a lorry and a van on the motorway in fog", "truck, car, road, fog"),
    ("woman walking her dog on the sidewalk", "person, dog, pavement"),
    ("misty morning over a lake with mountains behind", "fog, day, water-other, mountain"),
    ("it's dark, headlights of oncoming cars", "night, light, car"),
    (
        "rainy evening downtown, wet asphalt, neon lights",
        "overcast, dusk, building-other, road, light",
    ),
    ("kids playing football on a pitch", "person, sports ball, playingfield"),
    ("a harbour with fishing boats at sunset", "sea, boat, dusk"),
    ("security camera view of a warehouse yard", "building-other, pavement"),
    ("frozen river and snow-covered fir trees", "snow, river, tree"),
    ("dirt track through a wheat field", "dirt, grass"),
    ("sun setting behind skyscrapers", "dusk, skyscraper"),
    ("haystacks, tractors, barns", "straw, truck, building-other"),
    ("an elderly woman and a toddler wait at the bus stop", "person, structural-other"),
    ("the lawn behind the cottage is covered in frost", "grass, house, snow"),
    ("snowy mountains under a clear sky", "snow, mountain, sky-other, clear"),
    ("a boy on a scooter, a girl on a bike", "person, motorcycle, bicycle"),
    ("mum in the ambulance", "person, truck"),
    ("football pitch with floodlights at dusk", "playingfield, light, dusk"),
    ("thermal image of a house with windows and a chimney", "house, window-other, roof"),
    ("grassy hill + sheep", "grass, hill, sheep"),
    ("two horses grazing in a meadow behind a wooden fence", "horse, grass, fence"),
    ("brick houses on both sides of the street", "house, wall-brick, road"),
    ("stone railing, glass door, iron gate", "railing, door-stuff, fence"),
    ("parked bikes outside a cafe", "bicycle, building-other"),
    ("plastic bags by a parking garage", "plastic, building-other"),
    ("moonlit country lane, frosty", "night, road, snow"),
    ("people w/ umbrellas in drizzle", "person, umbrella, overcast"),
    ("a swimming pool behind the house, patio chairs", "water-other, house, pavement, chair"),
    ("drone footage of a car park", "road"),
]


@pytest.mark.parametrize("prompt, tags", AS_USERS_WRITE)
def test_prompts_as_users_write_them(prompt, tags):
    parsed = parse_tags(prompt)
    assert ", ".join(parsed.tags) == tags and parsed.unknown == []


@pytest.mark.parametrize(
    "prompt, tags, negated",
    [
        ("no cars", [], ["car"]),
        ("a street without trees", ["road"], ["tree"]),
        ("no cars, people or trees", [], ["car", "person", "tree"]),
        ("no cars, trees on the left", ["tree"], ["car"]),
        ("cars, no people, trees", ["car", "tree"], ["person"]),
        ("no cars on the road", ["road"], ["car"]),
        ("a road with no cars and a tree", ["road", "tree"], ["car"]),
        ("without cars and people", [], ["car", "person"]),
        ("neither cars nor people stand near the house", ["house"], ["car", "person"]),
        ("there aren't any cars but two buses", ["bus"], ["car"]),
        ("Don’t show cars. A tree.", ["tree"], ["car"]),
        ("not at night but at dusk", ["dusk"], ["night"]),
        ("a car-free street on a treeless hill", ["road", "hill"], ["car", "tree"]),
        ("empty of people, with trees instead of houses", ["tree"], ["person", "house"]),
        ("no cars here. A car there.", ["car"], ["car"]),
        ("not only cars but also trees, not far from a house", ["car", "tree", "house"], []),
        ("no one in the street", ["road"], []),
    ],
)
def test_negation(prompt, tags, negated):
    parsed = parse_tags(prompt)
    assert (parsed.tags, parsed.negated) == (tags, negated)


@pytest.mark.parametrize(
    "prompt, colours",
    [
        ("a red car", [("red", "car")]),
        ("an orange car", [("orange", "car")]),
        ("black and white cars", [("black", "car"), ("white", "car")]),
        ("a red, white and blue bus", [("red", "bus"), ("white", "bus"), ("blue", "bus")]),
        ("a dark bluish-gray road", [("dark blue-grey", "road")]),
        ("a light blue sky above a light", [("light blue", "sky-other")]),
        ("a white parked van with a red roof", [("white", "car"), ("red", "roof")]),
        ("the car is red and the trees are dark green", [("red", "car"), ("dark green", "tree")]),
        ("a man in black walks by", [("black", "person")]),
        ("a white crosswalk on a grey road", [("grey", "road")]),
        ("make the sky blue and the car dark red", [("blue", "sky-other"), ("dark red", "car")]),
        ("I want the car to be blue", [("blue", "car")]),
        ("a car, red, a tree", []),
        ("no red cars", []),
        ("red. A car", []),
    ],
)
def test_colours(prompt, colours):
    parsed = parse_tags(prompt)
    assert parsed.colours == colours and parsed.unknown == []


@pytest.mark.parametrize(
    ("prompt", "loose"),
    [
        ("cars (red)", ["red"]),
        ("car: dark red", ["dark red"]),
        ("a car painted red, a white house", ["red"]),
        ("green", ["green"]),
        ("a red car, a man in black, the sky is blue", []),
        ("no red cars, white lines on a road", []),
        ("+red", ["red"]),
    ],
)
def test_colours_without_a_thing(prompt, loose):
    assert read_prompt(prompt).loose == loose


def test_unknown_words_in_order_without_filler():
    parsed = parse_tags(
        "Three big rabbits stand behind a utility pole near the frobnicator, left of a rabbit and "
        "a car"
    )
    assert parsed.unknown == [
        "rabbits",
        "utility pole",
        "frobnicator",
        "rabbit",
    ] and parsed.tags == ["car"]


def test_own_vocabulary():
    parsed = parse_tags(
        "two trams, a zebra crossing, a car and a person", ("tram", "zebra crossing", "person")
    )
    assert parsed.tags == ["tram", "zebra crossing", "person"] and parsed.unknown == ["car"]


def test_default_prompt_names_the_scene():
    parsed = parse_tags(DEFAULT_PROMPT)
    assert {"road", "car", "person", "tree", "building-other", "sky-other", "day"} <= set(
        parsed.tags
    )
    assert parsed.unknown == []


@pytest.mark.parametrize("wrong", [None, 3, b"car", ["car"]])
def test_prompt_must_be_a_string(wrong):
    with pytest.raises(TypeError, match=type(wrong).__name__):
        parse_tags(wrong)


def test_prompt_length():
    assert parse_tags("car " * 500).tags == ["car"]
    with pytest.raises(ValueError, match="2,001 characters"):
        parse_tags("c" * 2001)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from([*WORDS, "no", "in", "a", ",", "red", "-", "free"])).map(" ".join)
)
def test_any_text_parses(prompt):
    parsed = parse_tags(prompt[:2000])
    for found, allowed in ((parsed.tags, WORDS), (parsed.negated, WORDS)):
        assert set(found) <= set(allowed) and len(set(found)) == len(found)
    assert all(
        tag in parsed.tags and set(colour.split()[-1].split("-")) <= set(COLOURS.values())
        for colour, tag in parsed.colours
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), unique=True, max_size=30))
def test_a_list_of_names_comes_back(names):
    assert parse_tags(", ".join(names)).tags == names


def test_warn_unknown():
    with pytest.warns(UserWarning) as caught:
        warn_unknown(parse_tags("a lory, a pavment and a xyzzyq").unknown)
    message = str(caught[0].message)
    assert len(caught) == 1 and "'lory' (did you mean truck" in message and "pavement" in message
    assert "'xyzzyq'." in message and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unknown(parse_tags("a car").unknown)


def test_tag_ids():
    ids, mask = tag_ids([["car", "tree", "night"], [], ["person"]])
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.tolist() == [[2, WORDS.index("tree"), 173], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert tag_ids([[], []])[0].shape == (2, 1) and not tag_ids([[], []])[1].any()
    assert tag_ids([])[0].shape == (0, 1)
    ids, mask = tag_ids([WORDS], max_tags=5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and mask.all()


def test_tag_ids_errors():
    with pytest.raises(ValueError, match=r"'tres'.*tree"):
        tag_ids([["tres"]])
    with pytest.raises(TypeError, match="parse_tags"):
        tag_ids(["car"])
    with pytest.raises(TypeError, match="parse_tags"):
        tag_ids("car")
    with pytest.raises(ValueError, match="max_tags"):
        tag_ids([["car"]], max_tags=0)


def test_tag_vectors_file(tmp_path):
    path = tmp_path / "table.safetensors"
    vectors = torch.randn(3, 8)
    save_file({"vectors": vectors.half()}, path, {"names": json.dumps(["a", "b c", "d"])})
    names, loaded = load_tag_vectors(path)
    assert names == ("a", "b c", "d") and loaded.dtype == torch.float32
    assert torch.equal(loaded, vectors.half().float())


@pytest.mark.parametrize(
    "tensors, metadata, message",
    [
        ({"other": torch.zeros(2, 4)}, {"names": '["a", "b"]'}, "no tensor 'vectors'"),
        ({"vectors": torch.zeros(2, 4)}, None, "no 'names'"),
        ({"vectors": torch.zeros(2, 4)}, {"names": "a, b"}, "not JSON"),
        ({"vectors": torch.zeros(2, 4)}, {"names": '{"a": 1}'}, "not a list of strings"),
        ({"vectors": torch.zeros(2, 4)}, {"names": '["a"]'}, "2, 4"),
        ({"vectors": torch.zeros(2, 4, dtype=torch.int64)}, {"names": '["a", "b"]'}, "int64"),
        ({"vectors": torch.full((2, 4), torch.nan)}, {"names": '["a", "b"]'}, "not finite"),
    ],
)
def test_tag_vectors_file_errors(tmp_path, tensors, metadata, message):
    save_file(tensors, tmp_path / "table.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        load_tag_vectors(tmp_path / "table.safetensors")


def test_tag_vectors_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tag_vectors(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no such format")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_tag_vectors(tmp_path / "broken.safetensors")


@pytest.mark.skipif(not TABLE.exists(), reason="the shared CLIP table is not on this machine")
def test_names_are_those_of_the_clip_table():
    names, vectors = load_tag_vectors(TABLE)
    assert names == COCO_STUFF and vectors.shape == (171, 512)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(171), atol=2e-3)


@pytest.mark.skipif(not PAIRS.exists(), reason="the shared captions are not on this machine")
def test_agrees_with_hand_written_tags():
    captions = {
        pair["colour_caption"]: pair for pair in map(json.loads, PAIRS.read_text().splitlines())
    }
    found = right = 0
    for caption, pair in captions.items():
        parsed = parse_tags(caption)
        tags = set(parsed.tags) & set(COCO_STUFF)
        found, right = found + len(tags), right + len(tags & set(pair["tags"]))
        lighting = [tag for tag in parsed.tags if tag in ("day", "dusk", "night")]
        assert lighting in ([], [pair["lighting"]]), caption
    assert right / found > 0.86


# --------------------------------------------------------------------------------------------------
# in a Colorizer


def test_corrections_use_the_tags_of_each_frame():
    colorizer = Colorizer(Fake(working_size=64), device="cpu", dtype=torch.float32)
    hot, cold = (np.full((32, 32), value, np.float32) for value in (0.9, -0.9))
    (_, _), (first, second) = colorizer(
        [hot, cold], text="+car -tree", span=(-1, 1), return_tags=True
    )
    assert first.predicted[0][0] == "tree" and {name for name, p in first.predicted if p > 0.5} == {
        "car",
        "road",
        "tree",
    }
    assert first.given_tags == ["car", "road"] and second.given_tags == [
        "car"
    ]  # nothing is likely in the cold frame
    together = colorizer([hot, cold], text="+car -tree", span=(-1, 1))
    for frame, names, colour in ((hot, "car, road", together[0]), (cold, "car", together[1])):
        assert np.array_equal(colour, colorizer(frame, text=names, span=(-1, 1)))
    assert colorizer(hot, text="a tree +car", span=(-1, 1), return_tags=True)[1].given_tags is None
    nothing, seen = colorizer(cold, text="-car", span=(-1, 1), return_tags=True)
    assert seen.given_tags == [] and np.array_equal(nothing, colorizer(cold, text="", span=(-1, 1)))
    with pytest.warns(UserWarning, match="'snwo'.*'hose'"):
        colorizer(hot, text="+snwo -hose", span=(-1, 1))


def test_the_tags_of_a_picture_are_those_of_the_method_tags():
    torch.manual_seed(0)
    network = build_network({
        "method": "cmmfnet", "channels": (8, 8, 8), "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1, 1), "kernels": (3, 3, 3), "global_size": 64, "vit_depth": 1,
        "vit_width": 16, "vit_heads": 2, "text": "clip-tags", "text_width": 16, "text_length": 16,
        "words": ("car", "road", "snow"), "least_size": 32, "ci": "image_query",
    })  # fmt: skip
    colorizer = Colorizer(network, device="cpu", dtype=torch.float32)
    encoded = []
    network.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    frames = [np.random.default_rng(seed).random((40, 56), np.float32) for seed in range(3)]
    texts = ["a car", None, "+snow"]
    colours, seen = colorizer(frames, text=texts, batch_size=1, return_tags=True)
    assert len(encoded) == 1 + 1 + 2  # only a correction needs the tags before the colours
    _, seen_together = colorizer(frames, text=texts, batch_size=3, return_tags=True)
    for frame, text_, colour, one, other in zip(
        frames, texts, colours, seen, seen_together, strict=True
    ):
        assert np.array_equal(colour, colorizer(frame, text=text_))
        names, probabilities = zip(*colorizer.tags(frame), strict=True)
        for each in (one, other):
            assert [name for name, _ in each.predicted] == list(names)
            assert np.allclose([p for _, p in each.predicted], probabilities, atol=1e-5)
    assert (seen[0].given_tags, seen[1].given_tags) == (None, None) and "snow" in seen[2].given_tags


def test_corrections_and_tags_of_a_network_that_predicts_none():
    frame = np.zeros((32, 32), np.float32)
    plain = Colorizer(Fake(words=(), text="clip-sentence"), device="cpu")
    for text_ in ("+snow", "-grass"):
        with pytest.raises(UserError, match="nothing to start from"):
            plain(frame, text=text_)
    with pytest.raises(ValueError, match="predicts no tags"):
        plain(frame, return_tags=True)
