"""CLIP text encoders: sentences into tokens, words into vectors, both caches. CLIP is tiny, random
and local."""

import multiprocessing
import shutil
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from fake_network import Fake
from tiny_clip import write_tiny_clip

from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.text.cache import TextCache
from cmmfnet.text.clip import CLIP_REVISIONS, TEMPLATES, WordEncoder
from cmmfnet.text.sentences import SentenceEncoder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's folder of encoded texts."""
    monkeypatch.setenv("CMMFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CMMFNET_TEXT_ENCODER", raising=False)
    return tmp_path / "cache" / "text"


def without_disk(folder):
    """An encoder that keeps nothing on disk, so that every text is encoded by this one."""
    encoder = SentenceEncoder(folder)
    encoder._disk = None
    return encoder


@pytest.fixture
def encoder(tiny_clip):
    return without_disk(tiny_clip)


def test_sentence_tokens(encoder):
    tokens, mask = encoder(["a car", "", "two red cars"])
    assert tokens.shape == (3, 77, 32) and tokens.dtype == torch.float32
    assert mask.shape == (3, 77) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [4 + 2, 2, 10 + 2]  # one token per letter, start and end
    assert not tokens[~mask].any() and tokens[mask].abs().sum(1).min() > 0
    assert not tokens.requires_grad
    # causal: the start of a text sees only itself
    assert torch.allclose(tokens[0, 0], tokens[1, 0], atol=1e-6)


def test_sentence_tokens_are_the_final_layer_norm_output(encoder):
    captured = []
    norm = next(
        m for name, m in encoder.network.named_modules() if name.endswith("final_layer_norm")
    )
    norm.register_forward_hook(lambda module, inputs, output: captured.append(output))
    tokens, mask = encoder(["a car"])
    assert torch.equal(tokens[mask], captured[0][0])


def test_other_texts_do_not_change_tokens(tiny_clip, encoder):
    alone, mask = encoder(["a car"])
    together, _ = without_disk(tiny_clip)(["two red cars by a wall", "a car"])
    assert torch.allclose(together[1], alone[0], atol=1e-6) and mask.sum() == 6


def test_deterministic_and_cached(tiny_clip, encoder):
    first, mask = encoder(["a car", "a car", "a tree"])
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert torch.equal(without_disk(tiny_clip)(["a car", "a car", "a tree"])[0], first)
    kept = first.clone()
    first.zero_()  # the caller's tensor is the caller's
    encoder.network.forward = None  # any further use of the network fails
    again, again_mask = encoder(["a tree", "a car"])
    assert torch.equal(again, kept[[2, 0]]) and torch.equal(again_mask, mask[[2, 0]])


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
    with pytest.raises(TypeError, match="list of strings"):
        encoder([])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SentenceEncoder(tmp_path / "nowhere")
    with pytest.raises(OSError, match="cannot load the CLIP text encoder"):
        SentenceEncoder(tmp_path)  # an empty folder
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        OSError, match=r"(?s)cannot load the CLIP text encoder .*CMMFNET_TEXT_ENCODER"
    ):
        SentenceEncoder(tmp_path)(["a car"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'cmmfnet\[clip\]'"):
        SentenceEncoder(tmp_path)(["a car"])


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
    hub = "openai/clip-vit-base-patch32"
    pinned = CLIP_REVISIONS[hub]
    assert len(pinned) == 40
    for arguments, name, revision in (
        ({}, hub, pinned),
        ({"revision": "abc"}, hub, "abc"),
        ({"model": tiny_clip, "revision": "abc"}, str(tiny_clip), None),
        ({"model": f"{hub}@abc"}, hub, "abc"),
        ({"model": "someone/clip"}, "someone/clip", None),
    ):
        seen.clear()
        SentenceEncoder(**arguments)([f"{name} {revision}"[:70]])
        assert seen == [(name, revision)] * 2


def test_the_environment_names_the_encoder(tiny_clip, monkeypatch, tmp_path):
    monkeypatch.setenv("CMMFNET_TEXT_ENCODER", str(tiny_clip))
    tokens, mask = SentenceEncoder()(["a car"])
    assert torch.equal(tokens, without_disk(tiny_clip)(["a car"])[0]) and mask.sum() == 6
    assert WordEncoder()(["car"])["car"].shape == (16,)
    monkeypatch.setenv("CMMFNET_TEXT_ENCODER", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SentenceEncoder()
    assert torch.equal(SentenceEncoder(tiny_clip)(["a car"])[0], tokens)  # the argument goes first


# --------------------------------------------------------------------------------------------------
# encoded texts on disk


def no_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_tokens_come_from_disk_without_loading_clip(tiny_clip, own_cache, monkeypatch):
    tokens, mask = SentenceEncoder(tiny_clip)(["a car", "a tree"])
    (folder,) = own_cache.iterdir()
    assert folder.name.startswith("sentences-folder-") and len(list(folder.iterdir())) == 2
    assert not any(
        b"car" in file.read_bytes() for file in folder.iterdir()
    )  # the text itself is not kept
    no_clip(monkeypatch)
    again, again_mask = SentenceEncoder(tiny_clip)(["a tree", "a car", "a tree"])
    assert torch.equal(again, tokens[[1, 0, 1]]) and torch.equal(again_mask, mask[[1, 0, 1]])
    with pytest.raises(ImportError, match="transformers"):
        SentenceEncoder(tiny_clip)(["a car", "never seen"])


def test_a_text_cut_on_disk_warns_every_time(tiny_clip, monkeypatch):
    with pytest.warns(UserWarning, match="102 tokens"):
        SentenceEncoder(tiny_clip)(["x" * 100])
    no_clip(monkeypatch)
    with pytest.warns(UserWarning, match="102 tokens and CLIP reads 77") as caught:
        SentenceEncoder(tiny_clip)(["x" * 100])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_file_is_written_anew(tiny_clip, own_cache, damage):
    tokens, _ = SentenceEncoder(tiny_clip)(["a car"])
    (path,) = own_cache.rglob("*.tokens")
    good = path.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    path.write_bytes(
        {"empty": b"", "cut": good[:middle], "flipped": flipped, "other": b"x" * 5000}[damage]
    )
    assert torch.equal(SentenceEncoder(tiny_clip)(["a car"])[0], tokens)
    assert path.read_bytes() == good and len(list(path.parent.iterdir())) == 1


def test_other_weights_have_other_files(tiny_clip, own_cache, tmp_path):
    other = shutil.copytree(tiny_clip, tmp_path / "other")
    SentenceEncoder(tiny_clip)(["a car"])
    SentenceEncoder(other)(["a car"])
    # the same files in another folder are the same encoder
    assert len(list(own_cache.iterdir())) == 1
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    SentenceEncoder(other)(["a car"])
    assert len(list(own_cache.iterdir())) == 2


def test_hub_models_are_kept_by_commit(tiny_clip, own_cache, monkeypatch):
    import transformers

    for name in ("CLIPTextModel", "CLIPTokenizer"):
        load = getattr(transformers, name).from_pretrained
        monkeypatch.setattr(
            getattr(transformers, name),
            "from_pretrained",
            lambda *_, load=load, **__: load(tiny_clip),
        )
    SentenceEncoder()(["a car"])
    hub = "openai/clip-vit-base-patch32"
    (folder,) = own_cache.iterdir()
    assert folder.name == f"sentences-{hub.replace('/', '--')}@{CLIP_REVISIONS[hub]}"
    SentenceEncoder("someone/clip", "main")(["a car"])  # no commit is known: nothing is kept
    assert len(list(own_cache.iterdir())) == 1
    no_clip(monkeypatch)
    assert SentenceEncoder()(["a car"])[1].sum() == 6


def test_a_folder_that_cannot_be_written_to_costs_one_warning(tiny_clip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CMMFNET_CACHE", str(tmp_path / "file"))
    encoder = SentenceEncoder(tiny_clip)
    with pytest.warns(UserWarning, match="cannot be kept in .*set CMMFNET_CACHE") as caught:
        first, _ = encoder(["a car", "a tree"])
        encoder(["a house"])
    assert len(caught) == 1 and torch.equal(first, without_disk(tiny_clip)(["a car", "a tree"])[0])


def test_the_folder_is_bounded(tiny_clip, own_cache, monkeypatch):
    monkeypatch.setattr("cmmfnet.text.cache.MOST_TEXTS", 3)
    SentenceEncoder(tiny_clip)(["a", "b"])
    SentenceEncoder(tiny_clip)(["c", "d", "e"])
    assert len(list(own_cache.rglob("*.tokens"))) == 3


def keep_texts(number: int) -> None:
    cache = TextCache("shared")
    for turn in range(40):
        cache.put(
            f"text {turn % 5}",
            {"tokens": np.full((300, 64), turn % 5, np.float32), "by": np.array(number)},
        )
        kept = cache.get(f"text {turn % 5}")
        assert kept is not None and (kept["tokens"] == turn % 5).all()


def test_several_processes_write_the_same_texts(own_cache):
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(keep_texts, range(3)))
    assert (
        len(list(own_cache.rglob("*"))) == 1 + 5
    )  # the folder and five texts, no half-written files


# --------------------------------------------------------------------------------------------------
# words out of the table


def reference_vector(word, folder):
    """The mean over the sentences that `TEMPLATES` make of a word, one forward pass for each."""
    transformers = pytest.importorskip("transformers")
    network = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    with torch.no_grad():
        each = [
            network(**tokenizer(sentence.format(word), return_tensors="pt")).text_embeds[0]
            for sentence in TEMPLATES
        ]
    mean = torch.stack([vector / vector.norm() for vector in each]).mean(0)
    return mean / mean.norm()


def test_words_that_the_table_lacks(tiny_clip, own_cache, monkeypatch):
    found = WordEncoder(tiny_clip)(["deer", "frobnicator"])
    assert list(found) == ["deer", "frobnicator"]
    for word, vector in found.items():
        assert vector.shape == (16,) and vector.dtype == torch.float32 and not vector.requires_grad
        assert torch.allclose(vector, reference_vector(word, tiny_clip), atol=1e-6)
    assert not torch.allclose(*found.values(), atol=1e-3)
    no_clip(monkeypatch)
    again = WordEncoder(tiny_clip)(["deer", "never seen"])
    assert list(again) == ["deer"] and torch.equal(again["deer"], found["deer"])


def test_words_never_start_a_download(monkeypatch, own_cache):
    import huggingface_hub
    import transformers

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None
    )  # not in the hub's cache
    monkeypatch.setattr(
        transformers.CLIPTokenizer,
        "from_pretrained",
        lambda *_, **__: pytest.fail("asked for a model"),
    )
    assert WordEncoder()(["deer"]) == {} and not own_cache.exists()
    monkeypatch.setenv("CMMFNET_TEXT_ENCODER", "someone/clip")
    assert WordEncoder()(["deer"]) == {}


def test_templates():
    assert len(TEMPLATES) == 15 == len(set(TEMPLATES)) and all(
        t.count("{}") == 1 for t in TEMPLATES
    )


# --------------------------------------------------------------------------------------------------
# in a Colorizer


class Projecting(Fake):
    """Fake with CLIP vectors of 16 numbers, projected, as while training."""

    def __init__(self):
        super().__init__(working_size=64)
        self.table = torch.nn.Parameter(torch.zeros(3, 16))
        self.text_projection = torch.nn.Linear(16, 4)


def test_unknown_words_go_through_clip_where_the_network_can_take_them(tiny_clip, monkeypatch):
    monkeypatch.setenv("CMMFNET_TEXT_ENCODER", str(tiny_clip))
    frame = np.arange(1024, dtype=np.float32).reshape(32, 32)
    colorizer = Colorizer(Projecting(), device="cpu", dtype=torch.float32)
    vector = reference_vector("deer", tiny_clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt, tokens in (
            ("a car and a deer", [torch.zeros(16), vector]),
            ("a deer", [vector]),
            ("+deer -car", None),
        ):
            colour, seen = colorizer(frame, text=prompt, return_tags=True)
            if tokens is None:
                assert seen.given_tags[-1] == "deer"
                tokens = [torch.zeros(16)] * (len(seen.given_tags) - 1) + [vector]
            assert colour[0, 0, 1] == ((torch.stack(tokens).mean(0)[0] + 1) * 127.5).round().clamp(
                0, 255
            )
    assert colorizer.network.seen[-1][3] == len(tokens)
    folded = Colorizer(
        Fake(working_size=64), device="cpu", dtype=torch.float32
    )  # no projection: it cannot
    with pytest.warns(UserWarning, match="does not know and leaves out: 'deer'"):
        folded(frame, text="a car and a deer")
    wrong = Projecting()
    wrong.text_projection = torch.nn.Linear(512, 4)
    with pytest.raises(
        ValueError, match=r"vectors of 16 numbers .* takes 512; CMMFNET_TEXT_ENCODER"
    ):
        Colorizer(wrong, device="cpu")(frame, text="a deer")


def test_unknown_words_are_named_where_clip_is_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    colorizer = Colorizer(Projecting(), device="cpu", dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"'deer'.*Known are 3 names"):
        colorizer(np.zeros((32, 32), np.float32), text="a car and a deer")
