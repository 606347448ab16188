"""CMMF-Net small's training: regression to pictures that the released CMMF-Net made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cmmfnet.methods.cmmfnet_small.network import CMMFNetSmall
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, StepContext, unwrapped, with_factors
from cmmfnet.nn.perceptual import Cropped
from cmmfnet.text.tags import tag_ids
from cmmfnet.text.vocabulary import MAX_TAGS, WORDS

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.training.recipe import Recipe


class CMMFNetSmallMethod(Matched):
    """Regression to a teacher's pictures, with the losses of :class:`Matched`; text as in
    CMMF-Net's training.

    Options:
        teacher: the model whose VGG-16 stem a fresh network takes over, in factors; "" leaves the
            stem random.
        fit: a folder of pairs, such as the teacher's. The factors are fitted on its frames, and the
            readouts of the stem's maps to its daytime colours. Without it the factors are fitted on
            rendered scenes and the readouts start at 0.
        text_dropout: share of the pictures that are trained without text; "night" is always kept.
        frozen: number of the stem's first convolutions that are not trained, which saves the most
            expensive part of the backward pass.
        stem_learning_rate: factor on the learning rate of the stem and of the layers that read its
            maps.
        perceptual_crop: side in pixels of a random part of each picture; the perceptual loss
            compares this part only, which saves time. 0: the whole picture.
    """

    Network = CMMFNetSmall
    title = "CMMF-Net small"
    paper = "none; a small network distilled from the released CMMF-Net"

    def __init__(
        self,
        network: CMMFNetSmall,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg16",
        perceptual_mode: str = "lpips",
        adversarial_start: float = 0.0,
        teacher: str = "cmmfnet",
        fit: str | None = None,
        text_dropout: float = 0.5,
        frozen: int = 4,
        stem_learning_rate: float = 0.1,
        perceptual_crop: int = 0,
    ):
        super().__init__(
            network, losses, pretrained=pretrained, perceptual=perceptual,
            perceptual_mode=perceptual_mode,
            adversarial_start=adversarial_start,
        )  # fmt: skip
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout is {text_dropout}; expected 0 to 1")
        self.fit = fit
        self.teacher, self.text_dropout, self.stem_learning_rate = (
            teacher,
            text_dropout,
            stem_learning_rate,
        )
        if perceptual_crop and self.perceptual is not None:
            self.perceptual = Cropped(self.perceptual, perceptual_crop)
        network.stem.layers[:frozen].requires_grad_(False)

    @classmethod
    def configuration(cls, model: dict) -> dict:
        """A fresh network knows all words, unless the recipe names some."""
        return (
            model | {"words": list(WORDS)}
            if model.get("text") != "none" and "words" not in model
            else model
        )

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        groups = super().parameter_groups(optimiser, recipe)
        if optimiser != "generator":
            return groups
        network = self.networks["generator"]
        # what reads the stem's maps, which are large, has small weights, and Adam's steps are as
        # large for small weights
        near = [
            p
            for part in (network.stem, network.laterals, network.readouts)
            for p in part.parameters()
        ]
        return with_factors(groups, {id(p): self.stem_learning_rate for p in near})

    def colour(self, batch: Batch, moment: StepContext) -> tuple[Tensor, Losses]:
        network = unwrapped(self.networks["generator"])
        tokens = mask = None
        if network.text_source != "none":
            rows = zip(batch.tags, batch.positions, strict=True)
            said = [self._given_tags(tags, position, moment) for tags, position in rows]
            ids, mask = tag_ids(said, network.words)
            tokens, mask = (
                network.embed_tags(ids.to(batch.thermal.device)),
                mask.to(batch.thermal.device),
            )
        return self.networks["generator"](batch.thermal, tokens, mask), {}

    def _given_tags(self, tags: list[str], position: int, moment: StepContext) -> list[str]:
        """The words of a picture: with ``text_dropout`` none, else four in five; "night" always."""
        rng, words = moment.rng(position), self.words
        kept = (
            []
            if rng.random() < self.text_dropout
            else [t for t in tags if t in words and rng.random() < 0.8]
        )
        night = [t for t in ("night",) if t in tags and t in words]
        return list(dict.fromkeys(night + kept))[:MAX_TAGS]

    @property
    def words(self) -> list[str]:
        return unwrapped(self.networks["generator"]).words
