"""Prompts into tags, tags into indices and vectors, sentences into CLIP tokens. CLIP is tiny, random and local."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cmmfnet import text
from cmmfnet.text import COCO_STUFF, COLOURS, DEFAULT_PROMPT, EXTRA_WORDS, WORDS, parse_tags

TABLE = Path(__file__).parents[2] / "shared/weights/clip-vitb16-cocostuff171.safetensors"
PAIRS = Path(__file__).parents[2] / "shared/data/pairs/index.jsonl"


def test_vocabulary():
    assert len(COCO_STUFF) == 171 and len(WORDS) == 177 == len(set(WORDS))
    assert COCO_STUFF[:3] == ("person", "bicycle", "car") and COCO_STUFF[79:82] == ("toothbrush", "banner", "blanket")
    assert WORDS[171:] == EXTRA_WORDS == ("day", "dusk", "night", "clear", "cloudy", "overcast")


@pytest.mark.parametrize("module, unwanted", [("cmmfnet.text", "transformers"), ("cmmfnet.prompts", "torch")])
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
        ("buses benches leaves knives mice shelves", ["bus", "bench", "leaves", "knife", "mouse", "shelf"]),
        ("traffic lights, lights, street lights", ["traffic light", "light"]),
        ("fire hydrants, parking meters, wine glasses", ["fire hydrant", "parking meter", "wine glass"]),
        ("a glass door and an iron gate by a stone bridge", ["door-stuff", "fence", "bridge"]),
        ("pavement, sidewalk, footpath", ["pavement"]),
        ("lorry truck pickup", ["truck"]),
        ("a taxi, an automobile and other vehicles on the asphalt", ["car", "road"]),
        ("hedge, shrub, lawn, mist, soil, pond, river", ["bush", "grass", "fog", "dirt", "water-other", "river"]),
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


def test_unknown_words_in_order_without_filler():
    parsed = parse_tags(
        "Three big rabbits stand behind a utility pole near the frobnicator, left of a rabbit and a car"
    )
    assert parsed.unknown == ["rabbits", "utility pole", "frobnicator", "rabbit"] and parsed.tags == ["car"]


def test_own_vocabulary():
    parsed = parse_tags("two trams, a zebra crossing, a car and a person", ("tram", "zebra crossing", "person"))
    assert parsed.tags == ["tram", "zebra crossing", "person"] and parsed.unknown == ["car"]


def test_default_prompt_names_the_scene():
    parsed = parse_tags(DEFAULT_PROMPT)
    assert {"road", "car", "person", "tree", "building-other", "sky-other", "day"} <= set(parsed.tags)
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
    st.text(max_size=200) | st.lists(st.sampled_from([*WORDS, "no", "in", "a", ",", "red", "-", "free"])).map(" ".join)
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
        text.warn_unknown(parse_tags("a lory, a pavment and a xyzzyq"))
    message = str(caught[0].message)
    assert len(caught) == 1 and "'lory' (did you mean truck" in message and "pavement" in message
    assert "'xyzzyq'." in message and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.warn_unknown(parse_tags("a car"))


def test_tag_ids():
    ids, mask = text.tag_ids([["car", "tree", "night"], [], ["person"]])
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.tolist() == [[2, WORDS.index("tree"), 173], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert text.tag_ids([[], []])[0].shape == (2, 1) and not text.tag_ids([[], []])[1].any()
    assert text.tag_ids([])[0].shape == (0, 1)
    ids, mask = text.tag_ids([WORDS], max_tags=5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and mask.all()


def test_tag_ids_errors():
    with pytest.raises(ValueError, match=r"'tres'.*tree"):
        text.tag_ids([["tres"]])
    with pytest.raises(TypeError, match="parse_tags"):
        text.tag_ids(["car"])
    with pytest.raises(TypeError, match="parse_tags"):
        text.tag_ids("car")
    with pytest.raises(ValueError, match="max_tags"):
        text.tag_ids([["car"]], max_tags=0)


def test_tag_vectors_file(tmp_path):
    path = tmp_path / "table.safetensors"
    vectors = torch.randn(3, 8)
    save_file({"vectors": vectors.half()}, path, {"names": json.dumps(["a", "b c", "d"])})
    names, loaded = text.load_tag_vectors(path)
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
        text.load_tag_vectors(tmp_path / "table.safetensors")


def test_tag_vectors_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        text.load_tag_vectors(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no such format")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        text.load_tag_vectors(tmp_path / "broken.safetensors")


@pytest.mark.skipif(not TABLE.exists(), reason="the shared CLIP table is not on this machine")
def test_names_are_those_of_the_clip_table():
    names, vectors = text.load_tag_vectors(TABLE)
    assert names == COCO_STUFF and vectors.shape == (171, 512)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(171), atol=2e-3)


@pytest.mark.skipif(not PAIRS.exists(), reason="the shared captions are not on this machine")
def test_agrees_with_hand_written_tags():
    captions = {pair["colour_caption"]: pair for pair in map(json.loads, PAIRS.read_text().splitlines())}
    found = right = 0
    for caption, pair in captions.items():
        parsed = parse_tags(caption)
        tags = set(parsed.tags) & set(COCO_STUFF)
        found, right = found + len(tags), right + len(tags & set(pair["tags"]))
        lighting = [tag for tag in parsed.tags if tag in ("day", "dusk", "night")]
        assert lighting in ([], [pair["lighting"]]), caption
    assert right / found > 0.86


# ------------------------------------------------------------------------------------------------ CLIP, tiny and random


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A folder in the form of transformers: byte-level tokenizer without merges, two layers of width 32."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]  # as in GPT-2's byte table
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=16, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.CLIPTextModelWithProjection(config)
    torch.nn.init.normal_(network.text_projection.weight)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tiny_clip):
    return text.SentenceEncoder(tiny_clip)


def test_sentence_tokens(encoder):
    tokens, mask = encoder(["a car", "", "two red cars"])
    assert tokens.shape == (3, 77, 32) and tokens.dtype == torch.float32
    assert mask.shape == (3, 77) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [4 + 2, 2, 10 + 2]  # one token per letter, start and end
    assert not tokens[~mask].any() and tokens[mask].abs().sum(1).min() > 0
    assert not tokens.requires_grad
    assert torch.allclose(tokens[0, 0], tokens[1, 0])  # causal: start of text sees only itself


def test_sentence_tokens_are_the_final_layer_norm_output(encoder):
    captured = []
    norm = next(m for name, m in encoder.network.named_modules() if name.endswith("final_layer_norm"))
    norm.register_forward_hook(lambda module, inputs, output: captured.append(output))
    tokens, mask = encoder(["a car"])
    assert torch.equal(tokens[mask], captured[0][mask])


def test_batch_and_padding_do_not_change_valid_tokens(tiny_clip, encoder):
    alone, mask = encoder(["a car"])
    together, _ = text.SentenceEncoder(tiny_clip)(["two red cars by a wall", "a car"])
    assert torch.allclose(together[1], alone[0], atol=1e-6)
    other_padding = text.SentenceEncoder(tiny_clip)
    other_padding.tokenizer.pad_token = "!"
    assert other_padding.tokenizer.pad_token_id != encoder.tokenizer.pad_token_id
    tokens, other_mask = other_padding(["a car"])
    assert torch.equal(other_mask, mask) and torch.allclose(tokens, alone, atol=1e-6)


def test_deterministic_and_cached(tiny_clip, encoder):
    first, mask = encoder(["a car", "a car", "a tree"])
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert torch.equal(text.SentenceEncoder(tiny_clip)(["a car", "a car", "a tree"])[0], first)
    kept = first.clone()
    first.zero_()  # the caller's tensor is the caller's
    encoder.network.forward = None  # any further use of the network fails
    again, again_mask = encoder(["a tree", "a car"])
    assert torch.equal(again, kept[[2, 0]]) and torch.equal(again_mask, mask[[2, 0]])


def test_cache_is_bounded(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "CACHED_TEXTS", 2)
    tokens, _ = encoder(["a", "b", "c"])
    assert list(encoder._cache) == ["b", "c"]
    assert torch.allclose(encoder(["b", "a"])[0], tokens[[1, 0]], atol=1e-6)
    assert list(encoder._cache) == ["b", "a"]


def test_frozen(encoder):
    assert not encoder.network.training
    assert sum(p.numel() for p in encoder.network.parameters()) > 0
    assert not any(p.requires_grad for p in encoder.network.parameters())


def test_too_long_a_sentence_is_cut_with_a_warning(encoder):
    with pytest.warns(UserWarning, match="102 tokens and CLIP reads 77") as caught:
        tokens, mask = encoder(["x" * 100])
    assert mask.all() and tokens.shape == (1, 77, 32) and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["x" * 75])


def test_sentence_encoder_errors(encoder, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="list of strings"):
        encoder("a car")
    with pytest.raises(TypeError, match="list of strings"):
        encoder(["a car", None])
    assert encoder([])[0].shape == (0, 77, 32)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        text.SentenceEncoder(tmp_path / "nowhere")
    with pytest.raises(OSError, match="cannot load the CLIP text encoder"):
        text.SentenceEncoder(tmp_path)  # an empty folder
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'cmmfnet\[clip\]'"):
        text.SentenceEncoder(tmp_path)


def test_revision_is_pinned_for_the_hub_only(tiny_clip, monkeypatch):
    import transformers

    seen = []
    load = transformers.CLIPTextModel.from_pretrained
    load_tokenizer = transformers.CLIPTokenizer.from_pretrained

    def spy(real):
        def from_pretrained(name, revision=None):
            seen.append((name, revision))
            return real(tiny_clip)

        return from_pretrained

    monkeypatch.setattr(transformers.CLIPTextModel, "from_pretrained", spy(load))
    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", spy(load_tokenizer))
    text.SentenceEncoder()
    text.SentenceEncoder(revision="abc")
    text.SentenceEncoder(tiny_clip, revision="abc")
    hub = "openai/clip-vit-base-patch32"
    pinned = text.CLIP_REVISIONS[hub]
    assert len(pinned) == 40
    assert seen == [(hub, pinned)] * 2 + [(hub, "abc")] * 2 + [(str(tiny_clip), None)] * 2


def test_clip_tag_vectors(tiny_clip):
    vectors = text.clip_tag_vectors(["car", "tree"], tiny_clip)
    assert vectors.shape == (2, 16) and vectors.dtype == torch.float32 and not vectors.requires_grad
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)
    assert torch.allclose(text.clip_tag_vectors(["tree"], tiny_clip)[0], vectors[1], atol=1e-6)
    templates = ("a {}", "one {} in the scene.")
    each = torch.cat([text.clip_tag_vectors(["car"], tiny_clip, templates=(t,)) for t in templates])
    averaged = torch.nn.functional.normalize(each.mean(0), dim=0)
    assert torch.allclose(text.clip_tag_vectors(["car"], tiny_clip, templates=templates)[0], averaged, atol=1e-5)
    for names, bad in (([], templates), ("car", templates), (["car"], ("a car",)), (["car"], ())):
        with pytest.raises(ValueError):
            text.clip_tag_vectors(names, tiny_clip, templates=bad)


def test_templates():
    assert len(text.TEMPLATES) == 15 == len(set(text.TEMPLATES)) and all(t.count("{}") == 1 for t in text.TEMPLATES)
