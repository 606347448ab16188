"""ToDayGAN: night to day by domain encoders and decoders and a discriminator with three heads, from
unpaired pictures.

Anoosheh et al., *Night-to-Day Image Translation for Retrieval-based Localization*, ICRA 2019, in
the form of the authors' code: encoder 5,099,143 parameters, decoder 6,565,770 a domain,
discriminator 16,698,201 a domain; a thermal frame is read as three equal channels. Only the
generator from thermal to visible is kept in a model.

The paper translates colour at night to colour by day; here, as in PearlGAN's comparison, thermal
takes the place of night. Its domains are named, not numbered, and the losses that its code has with
a weight of 0 (identity, latent) are not here. The discriminators have instance norms, as the code's
default, and learn from half of their loss (combogan.py names the files).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cmmfnet.methods.combogan import (
    DomainTranslation,
    ResidualBlock,
    decoding_layers,
    encoding_layers,
)
from cmmfnet.nn.patchgan import as_channels, init_normal


class Translator(nn.Module):
    """Encoder of one domain, decoder of the other.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; a colour picture (B,3,H,W) is
    taken as it is. H and W are multiples of 8. ``encoder_blocks`` and ``decoder_blocks``: residual
    blocks at H/4.
    """

    # 4 for the strides; 8 so that the smallest map has the two pixels that reflect padding needs
    multiple_of = 8

    def __init__(self, *, width: int = 64, encoder_blocks: int = 4, decoder_blocks: int = 5):
        super().__init__()
        self.keywords = {
            "width": width,
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
        }
        self.encoder = nn.Sequential(
            *encoding_layers(3, width), *(ResidualBlock(4 * width) for _ in range(encoder_blocks))
        )
        self.decoder = nn.Sequential(
            *(ResidualBlock(4 * width) for _ in range(decoder_blocks)), *decoding_layers(width, 3)
        )
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        return self.decoder(self.encoder(as_channels(thermal, 3, self.multiple_of)))


class ToDayGAN(DomainTranslation):
    """``losses``: ``adversarial`` (relativistic least squares on three heads, both domains),
    ``cycle`` (smooth L1, both directions). Both translators make one step together, then both
    discriminators.

    ``discriminator_width``: channels of the discriminators' first layer, to train a reduced size.
    """

    Network = Translator
    title = "ToDayGAN"
    paper = (
        "Anoosheh et al., Night-to-day image translation for retrieval-based localization, "
        "ICRA 2019"
    )
    LOSSES: ClassVar[dict[str, float]] = {"adversarial": 1.0, "cycle": 10.0}
    discriminator_norm = "instance"
