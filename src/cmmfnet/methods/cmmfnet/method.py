"""Training of CMMF-Net (section 3.5): the paper's losses, or the released recipe's, and the text of
each step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet.network import CMMFNet
from cmmfnet.methods.cmmfnet.region_losses import colour_loss, region_loss, spill_loss
from cmmfnet.methods.cmmfnet.training_words import draw_words
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, StepContext, sent, unwrapped, with_factors
from cmmfnet.methods.traits import traits_of
from cmmfnet.nn.fast.graphed import GraphedTraining
from cmmfnet.nn.perceptual import Cropped, load_features
from cmmfnet.text.attributes import ATTRIBUTES, attribute_weights
from cmmfnet.text.labels import IGNORE
from cmmfnet.text.sentences import DEFAULT_PROMPT, SentenceEncoder
from cmmfnet.text.tags import load_tag_vectors, tag_ids
from cmmfnet.text.vocabulary import MAX_TAGS, WORDS

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.training.recipe import Recipe

TAG_VECTORS = "clip-vitb16-cocostuff171.safetensors"
WINDOW_DRAW = 1_000_000
"""The number of a step's window among the step's random draws; pictures have their positions."""


class CMMFNetMethod(Matched):
    """The training of CMMF-Net: the losses of the paper (section 3.5) or of the released recipe,
    and the text of each step.

    Losses:
        l1, perceptual, tv, ssim: the paper's four, eq. 3 to 6, each with weight 1 in the paper.
        adversarial: hinge PatchGAN.
        tags, labels: cross-entropy of the two auxiliary heads.
        regions: cross-entropy of the words' maps with label maps (region_losses.py).
        colours: difference of the mean colours of the words' regions.
        spill: change outside of the words' regions, against the picture without these words.

    Options:
        text_dropout: share of pictures that are trained without text, 0 to 1, so that the network
            also colours without. Night pictures keep the word "night", since nothing else asks for
            darkness.
        imagenet: start a vgg16 stem from ImageNet's weights.
        stem_learning_rate: factor on the learning rate of the vgg16 stem.
        text_learning_rate: factor on the learning rate of ``regions``, whose parts are new in a
            network that is otherwise trained.
        only_regions: train the parts of ``regions`` only, so that the pictures without text stay
            the same.
        frozen_words: do not train the words' vectors and ``regions``.
        perceptual_crop: side in pixels of a random part of each picture; the perceptual loss
            compares this part only, which saves time. 0: the whole picture.
        window: side in pixels, a multiple of 8, of a random window of each step's pictures. The
            image encoder sees the whole picture and the U-Net colours the window, as it is for a
            large frame. 0: the whole picture.
    """

    Network = CMMFNet
    title = "CMMF-Net"
    paper = "Jiang et al., CLIP-guided multi-modal fusion, Intelligence & Robotics 2025"
    LOSSES: ClassVar[dict[str, float]] = {
        "l1": 1.0, "perceptual": 1.0, "tv": 1.0, "ssim": 1.0, "adversarial": 0.0, "tags": 0.0,
        "labels": 0.0,
        "regions": 0.0, "colours": 0.0, "spill": 0.0,
    }  # fmt: skip

    def __init__(
        self,
        network: CMMFNet,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg19",
        perceptual_mode: str = "l1",
        perceptual_layers: Sequence[str] | str | None = None,
        perceptual_weights: Sequence[float] | None = None,
        perceptual_imagenet: bool = True,
        adversarial_start: float = 0.0,
        text_dropout: float = 0.0,
        imagenet: bool = False,
        stem_learning_rate: float = 1.0,
        text_learning_rate: float = 1.0,
        only_regions: bool = False,
        perceptual_crop: int = 0,
        window: int = 0,
        frozen_words: bool = False,
    ):
        super().__init__(
            network, losses, pretrained=pretrained, perceptual=perceptual,
            perceptual_mode=perceptual_mode, perceptual_layers=perceptual_layers,
            perceptual_weights=perceptual_weights, perceptual_imagenet=perceptual_imagenet,
            adversarial_start=adversarial_start,
        )  # fmt: skip
        if only_regions and network.regions is None:
            raise ValueError(
                "only_regions is true, but the network has none; it needs regions: true in the "
                "model"
            )
        if only_regions:
            network.requires_grad_(False)
            network.regions.requires_grad_(True)
            network.attribute_vectors.requires_grad_(True)
        if perceptual_crop and self.perceptual is not None:
            self.perceptual = Cropped(self.perceptual, perceptual_crop)
        if window < 0 or window % 8:
            raise ValueError(f"window is {window}; expected 0 or a multiple of 8, such as 256")
        if frozen_words:
            if network.text_source != "clip-tags":
                raise ValueError(f"frozen_words is true, but text is {network.text_source!r}")
            network.word_vectors.requires_grad_(False)
            if network.regions is not None:
                network.regions.requires_grad_(False)
                network.attribute_vectors.requires_grad_(False)
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout is {text_dropout}; expected 0 to 1")
        for loss, head, needs in (
            ("tags", network.tag_head, "words (text: clip-tags)"),
            ("labels", network.label_head, "classes: 25"),
        ):
            if loss in self.weights and head is None:
                raise ValueError(
                    f"loss {loss!r} has a weight, but the network has no head for it; it needs "
                    f"{needs}, or leave the loss out"
                )
            if loss not in self.weights and head is not None:
                head.requires_grad_(False)  # nothing would train it
        for loss in (
            {"regions", "colours", "spill"} & set(self.weights) if network.regions is None else ()
        ):
            raise ValueError(
                f"loss {loss!r} has a weight, but the network has no maps; it needs regions: "
                "true, or leave it out"
            )
        if network.interaction.mode == "none" and not (network.modulations or network.regions):
            # nor does text reach anything here
            network.interaction.no_text.requires_grad_(False)
            network.text_projection.requires_grad_(False)
        self.text_dropout, self.imagenet = text_dropout, imagenet
        self.stem_learning_rate, self.text_learning_rate = stem_learning_rate, text_learning_rate
        self.window, self.sentences = window, None
        self._whole: tuple[Tensor, Tensor, Tensor] | None = None
        self._second: GraphedTraining | None = None

    @classmethod
    def configuration(cls, model: dict) -> dict:
        """A fresh clip-tags network knows all words, unless the recipe names some. A fresh
        clip-sentence network keeps the prompt that pictures without a caption are trained with: it
        is the text of every frame that comes without."""
        text = model.get("text", "clip-sentence")
        if text == "clip-tags" and "words" not in model:
            return model | {"words": list(WORDS)}
        if text == "clip-sentence" and "default_prompt" not in model:
            return model | {"default_prompt": DEFAULT_PROMPT}
        return model

    @classmethod
    def extended(cls, network: CMMFNet, config: dict, model: dict) -> tuple[CMMFNet, dict]:
        """A trained network with the part ``regions``, if a recipe's ``model`` adds it, and with
        ``regions_alone`` as there. The output without text stays the same."""
        added = {
            key: True
            for key in ("regions", "regions_alone")
            if model.get(key) and not config.get(key)
        }
        if not added:
            return network, config
        config = config | added
        larger = build_network(config)
        missing = larger.load_state_dict(network.state_dict(), strict=False).missing_keys
        if other := [
            key for key in missing if not key.startswith(("regions.", "attribute_vectors"))
        ]:
            raise ValueError(f"the network lacks {', '.join(other)}")
        return larger, config

    def start(self) -> None:
        """Load the pre-trained parts of a fresh network: CLIP's vectors of words, ImageNet's
        stem."""
        network = self.networks["generator"]
        if network.text_source == "clip-tags":
            if self.pretrained is None:
                warnings.warn(
                    "no folder of pre-trained files: the vectors of words start at random",
                    stacklevel=2,
                )
            else:
                names, vectors = load_tag_vectors(Path(self.pretrained) / TAG_VECTORS)
                index = {w: i for i, w in enumerate(network.words)}
                with torch.no_grad():
                    for name, vector in zip(names, vectors, strict=True):
                        if name in index:
                            network.word_vectors[index[name]] = vector
        if self.imagenet:
            network.image_encoder.load_imagenet(load_features("vgg16", self.pretrained))

    def to(self, device: torch.device) -> None:
        super().to(device)
        if self.networks["generator"].text_source == "clip-sentence":
            self.sentences = SentenceEncoder()

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        groups = super().parameter_groups(optimiser, recipe)
        if optimiser != "generator" or self.stem_learning_rate == self.text_learning_rate == 1:
            return groups
        network = self.networks["generator"]
        factors = {id(p): self.stem_learning_rate for p in network.image_encoder.stem.parameters()}
        if network.regions is not None:
            new = [*network.regions.parameters(), network.attribute_vectors]
            factors |= {id(p): self.text_learning_rate for p in new}
        return with_factors(groups, factors)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        if self.window:
            batch, self._whole = self._windowed(batch, moment)
        yield from super().training_step(batch, moment)

    def _windowed(
        self, batch: Batch, moment: StepContext
    ) -> tuple[Batch, tuple[Tensor, Tensor, Tensor]]:
        """The batch cut to one window, at the same place in all pictures; and the network's inputs:
        whole frames (B,1,H,W), rows and columns of the window in steps of 8 pixels."""
        rng, device = moment.rng(WINDOW_DRAW), batch.thermal.device
        sides = [min(self.window, side) // 8 for side in batch.thermal.shape[-2:]]
        starts = [
            int(rng.integers(side // 8 - length + 1))
            for side, length in zip(batch.thermal.shape[-2:], sides, strict=True)
        ]
        steps = [torch.arange(a, a + n) for a, n in zip(starts, sides, strict=True)]
        rows, columns = (slice(8 * a, 8 * (a + n)) for a, n in zip(starts, sides, strict=True))
        part = {
            kind: getattr(batch, kind)[..., rows, columns].contiguous()
            for kind in ("thermal", "visible", "label")
        }
        return replace(batch, **part), (batch.thermal, *(sent(s, device) for s in steps))

    def text(self, batch: Batch, moment: StepContext) -> tuple[Tensor | None, Tensor | None]:
        """Text tokens and mask of a batch; draws which pictures go without text."""
        network, device = unwrapped(self.networks["generator"]), batch.thermal.device
        if network.text_source == "none":
            return None, None
        draws = [moment.rng(position) for position in batch.positions]
        dropped = [rng.random() < self.text_dropout for rng in draws]
        if network.text_source == "clip-sentence":
            prompt = traits_of(network).default_prompt or DEFAULT_PROMPT
            tokens, mask = self.sentences([c or prompt for c in batch.captions])
            kept = [
                caption is not None and (not drop or "night" in tags)
                for drop, tags, caption in zip(dropped, batch.tags, batch.captions, strict=True)
            ]
            return sent(tokens, device), sent(mask.cpu() & torch.tensor(kept)[:, None], device)
        if network.regions is not None:
            given = self.given_words(batch, moment)
            ids, mask = tag_ids([[name for name, _ in row] for row in given], network.words)
            pad = (0, MAX_TAGS - ids.shape[1])
            attributes = torch.zeros(len(given), MAX_TAGS, len(ATTRIBUTES))
            for b, row in enumerate(given):
                for i, (_, colour) in enumerate(row):
                    attributes[b, i] = torch.from_numpy(attribute_weights(colour))
            vectors = network.embed_tags(sent(F.pad(ids, pad), device), sent(attributes, device))
            return vectors, sent(F.pad(mask, pad), device)
        chosen = []
        for tags, rng, drop in zip(batch.tags, draws, dropped, strict=True):
            some = [t for t in tags if t in network.words and rng.random() < 0.8]
            chosen.append([] if drop else list(dict.fromkeys(some)))
            if "night" in tags and "night" in network.words and "night" not in chosen[-1]:
                chosen[-1].append("night")
        ids, mask = tag_ids([names[-MAX_TAGS:] for names in chosen], network.words)
        pad = (0, MAX_TAGS - ids.shape[1])  # one length, so that every step has the same shapes
        return network.embed_tags(sent(F.pad(ids, pad), device)), sent(F.pad(mask, pad), device)

    def given_words(self, batch: Batch, moment: StepContext) -> list[list[tuple[str, str | None]]]:
        """The words of each picture, for a network with ``regions``: (name, colour or None)."""
        words = unwrapped(self.networks["generator"]).words
        count, labelled = len(batch), (batch.label != IGNORE).flatten(1).any(dim=1).tolist()
        rows = zip(
            batch.tags,
            batch.colours or [[]] * count,
            batch.given_tags or [[]] * count,
            batch.positions,
            strict=True,
        )
        given = []
        for (tags, colours, given_tags, position), known in zip(rows, labelled, strict=True):
            rng = moment.rng(position)
            drop = rng.random() < self.text_dropout
            always = [*given_tags, *(["night"] if "night" in tags else [])]
            given.append(
                draw_words(
                    rng, tags, colours, always, words, drop=drop, labelled=known, most=MAX_TAGS
                )
            )
        return given

    def colour(self, batch: Batch, moment: StepContext) -> tuple[Tensor, Losses]:
        network = self.networks["generator"]
        tokens, mask = self.text(batch, moment)
        thermal, *window = self._whole if self.window else (batch.thermal,)
        colour, tag_logits, label_logits, levels = self.generate(
            thermal, tokens, mask, *window, heads=True, maps=True
        )
        losses: Losses = {}
        names: list[list[str]] = []
        if {"regions", "colours", "spill"} & set(self.weights):
            names = [[name for name, _ in row] for row in self.given_words(batch, moment)]
        if "colours" in self.weights:
            losses["colours"] = colour_loss(
                colour, batch.visible, batch.label, names, MAX_TAGS, IGNORE
            )
        if "regions" in self.weights:
            everywhere = unwrapped(network).word_tokens(tokens, mask).everywhere
            losses["regions"] = region_loss(levels, batch.label, names, mask, everywhere, IGNORE)
        if "spill" in self.weights:
            everywhere = unwrapped(network).word_tokens(tokens, mask).everywhere
            plain = self._without_things(thermal, tokens, mask & everywhere, *window).detach()
            losses["spill"] = spill_loss(colour, plain, batch.label, names, MAX_TAGS, IGNORE)
        if "tags" in self.weights:
            words = unwrapped(network).words
            target = torch.zeros(tag_logits.shape)
            index = {w: i for i, w in enumerate(words)}
            for row, tags in enumerate(batch.tags):
                target[row, [index[t] for t in tags if t in index]] = 1
            each = F.binary_cross_entropy_with_logits(
                tag_logits, sent(target, tag_logits.device), reduction="none"
            )
            losses["tags"] = (each.sum(dim=1) * batch.tagged).mean()
        if "labels" in self.weights:
            small = batch.label[:, 4::8, 4::8]
            entropy = F.cross_entropy(
                label_logits.float(), small, ignore_index=IGNORE, reduction="sum"
            )
            losses["labels"] = entropy / (small != IGNORE).sum().clamp_min(1)
        return colour, losses

    def _without_things(self, *inputs: Tensor | None) -> Tensor:
        """The pictures of a step's second pass, by CUDA graphs of their own where ``graphs``
        allows: a call of `generate` would overwrite the first pass."""
        network = self.networks["generator"]
        if not self.graphs:
            return network(*inputs)
        if self._second is None:
            self._second = GraphedTraining(network)
        return self._second(*inputs)
