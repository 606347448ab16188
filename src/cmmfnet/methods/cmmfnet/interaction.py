"""CMMF-Net's image encoder (section 3.2) and cross-modal interaction, the CI block (3.3).
network.py has the whole network and the paper's reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.perceptual import feature_layers, tapped
from cmmfnet.nn.transformer import CrossBlock, TransformerBlock
from cmmfnet.nn.unet import Resize


def tone_channels(thermal: Tensor, window: int = 33) -> Tensor:
    """(B,1,H,W) in [-1,1] -> (B,2,H,W) in [-1,1]: the frame x, and its local contrast
    tanh((x - local mean) / (local deviation + 0.1) / 1.5).

    One hot object (a person, an engine) presses the rest of a stretched frame into a few dark
    levels; the second channel keeps the structure there visible.
    """

    def mean(x: Tensor) -> Tensor:  # a box is separable: two passes of 33 instead of one of 1,089
        x = F.avg_pool2d(
            x, (window, 1), stride=1, padding=(window // 2, 0), count_include_pad=False
        )
        return F.avg_pool2d(
            x, (1, window), stride=1, padding=(0, window // 2), count_include_pad=False
        )

    local = mean(thermal)
    deviation = (mean(thermal.square()) - local.square()).clamp_min(0).sqrt()
    return torch.cat([thermal, torch.tanh((thermal - local) / (deviation + 0.1) / 1.5)], dim=1)


class ImageEncoder(nn.Module):
    """ViT on the whole frame (section 3.2): (B,C,H,W), resized to (B,C,G,G) -> tokens
    (B,(G/16)^2,D), and the stem's finer maps (an empty list for ``stem="patch"``).

    ``stem="patch"``: 16x16 convolution (the paper's plain ViT). ``stem="vgg16"``: a hybrid ViT
    whose patches are VGG-16's relu5_3 map (stride 16), so that training can start from ImageNet
    features; its relu2_2, relu3_3 and relu4_3 maps (strides 2, 4, 8) are returned for the U-Net.
    """

    VGG_TAPS = (8, 15, 22)

    def __init__(self, channels: int, size: int, width: int, depth: int, heads: int, stem: str):
        super().__init__()
        if stem == "patch":
            self.stem = nn.Conv2d(channels, width, 16, stride=16)
        elif stem == "vgg16":
            self.stem = feature_layers("vgg16")
            self.stem[0] = nn.Conv2d(channels, 64, 3, padding=1)
            self.join = nn.Conv2d(512, width, 1)
        else:
            raise ValueError(f"stem is {stem!r}; expected 'patch' or 'vgg16'")
        self.hybrid = stem == "vgg16"
        self.size, self.resize = size, Resize()
        self.positions = nn.Parameter(
            nn.init.normal_(torch.empty(1, (size // 16) ** 2, width), std=0.02)
        )
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def load_imagenet(self, features: nn.Sequential) -> None:
        """Start the VGG stem from ImageNet's weights. The filters of the first layer are summed
        over colours and divided among the tone channels.

        Normalised ImageNet pictures span about -2.1 to 2.6, twice our [-1,1], hence the factor 2: a
        grey frame of value v gives the features of a grey picture of value 2v, apart from border
        and bias.
        """
        state = features.state_dict()
        channels = self.stem[0].in_channels
        state["0.weight"] = state["0.weight"].sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (
            2.0 / channels
        )
        self.stem.load_state_dict(state)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.resize(x, (self.size, self.size))
        maps: list[Tensor] = []
        if self.hybrid:
            x, maps = tapped(
                self.stem, x.contiguous(memory_format=torch.channels_last), self.VGG_TAPS
            )
            x = self.join(x)
        else:
            x = self.stem(x)
        # contiguous, else all that follows has the order of the map
        tokens = x.flatten(2).transpose(1, 2).contiguous() + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), maps


class CrossModalInteraction(nn.Module):
    """The CI block (section 3.3, eq. 1 and 2, Figure 2): two transformer blocks between text and
    image tokens, then OutputProj to an image map.

    image (B,N,D), text (B,L,D), text_mask (B,L) bool -> (B,C,grid,grid). A learned token for "no
    text" is put before the text, so that an empty text is valid. Modes:

    - ``text_query`` (Fig. 2): Q = text. K = V = image in the first block; in the second block K = V
      = the output of the first block, to which the output of the second is added. The text is added
      to nothing, so that all features come from the frame. The output has L rows; OutputProj mixes
      them into positions (linear over tokens, padding zeroed), L <= text_length.
    - ``image_query``: Q = image, K = V = text. Every position is kept (an extension, the usual
      choice elsewhere).
    - ``text_key`` (section 3.1 to the letter): Q and V from the image, K from the text, resampled
      to N rows by a linear map.
    - ``add`` (Table 3, "without CI"): pooled text goes through a linear layer and is added to every
      image token.
    - ``none`` (Table 3, "without text encoder"): self-attention on the image tokens.
    """

    def __init__(
        self,
        mode: str,
        width: int,
        heads: int,
        depth: int,
        tokens: int,
        grid: int,
        channels: int,
        length: int,
    ):
        super().__init__()
        if mode not in ("text_query", "image_query", "text_key", "add", "none"):
            raise ValueError(
                f"ci is {mode!r}; expected 'text_query', 'image_query', 'text_key', 'add' or 'none'"
            )
        self.mode, self.grid, self.length, self.resize = mode, grid, length, Resize()
        self.no_text = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = nn.ModuleList(
            CrossBlock(width, heads) for _ in range(0 if mode == "add" else depth)
        )
        if mode == "add":
            self.add = nn.Linear(width, width)
        if mode == "text_key":
            self.resample = nn.Linear(length + 1, tokens)
        if mode == "text_query":
            self.mix = nn.Linear(length + 1, grid * grid)
        self.project, self.norm = nn.Linear(width, channels), nn.LayerNorm(channels)

    def _fixed_length(self, text: Tensor) -> Tensor:
        if text.shape[1] > self.length + 1:
            raise ValueError(
                f"text has {text.shape[1] - 1} tokens; this network takes at most {self.length}"
            )
        return F.pad(text, (0, 0, 0, self.length + 1 - text.shape[1]))

    def forward(
        self, image: Tensor, text: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-> map (B,C,grid,grid), and the pooled text (B,D), which is the learned "no text" token
        where there is no text."""
        batch = image.shape[0]
        empty = self.no_text.expand(batch, -1, -1)
        if text is None:
            text, mask = empty, torch.ones(batch, 1, dtype=torch.bool, device=image.device)
        else:
            if mask is None:
                mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            text = torch.cat([empty, text.to(empty.dtype)], dim=1)
            mask = F.pad(mask, (1, 0), value=True)
            text = text.masked_fill(
                ~mask.unsqueeze(-1), 0
            )  # a product would let NaN in unset rows through
        weight = mask.unsqueeze(-1).to(text.dtype)
        pooled = text.sum(dim=1) / weight.sum(dim=1)

        if self.mode == "text_query":
            text = self._fixed_length(text)
            given = F.pad(
                mask, (0, text.shape[1] - mask.shape[1])
            )  # padded queries answer too: not to be used
            state = self.blocks[0](text, image, image)
            for block in self.blocks[1:]:
                state = block(text, state, state, given, stream=state)
            tokens = self.mix((state * given.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)
        elif self.mode == "add":
            tokens = image + self.add(pooled).unsqueeze(1)
        else:
            tokens = image
            if self.mode == "text_key":
                text = self.resample(self._fixed_length(text).transpose(1, 2)).transpose(1, 2)
            for block in self.blocks:
                if self.mode == "image_query":
                    tokens = block(tokens, text, text, mask, stream=tokens)
                elif self.mode == "text_key":
                    tokens = block(tokens, text, tokens, stream=tokens)
                else:
                    tokens = block(tokens, tokens, tokens, stream=tokens)
        side = math.isqrt(tokens.shape[1])
        out = self.norm(self.project(tokens)).transpose(1, 2).unflatten(2, (side, side))
        return self.resize(out, (self.grid, self.grid)), pooled


class Modulation(nn.Module):
    """A vector (B,D) -> scale and shift of a map's features, each (B,C), for unet.Guide. Starts as
    the identity."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(vector).chunk(2, dim=1)
        return scale, shift
