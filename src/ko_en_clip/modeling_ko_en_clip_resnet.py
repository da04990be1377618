"""CLIP's modified ResNet: a stem of three convolutions, anti-aliased strides, attention pooling.

Implements Radford et al. 2021, section 2.4: the changes of ResNet-D (He et al. 2019), blur pooling in the form of
average pooling before every stride (Zhang 2019), and one layer of attention whose query is the mean of the last
feature map, in place of global average pooling. Parameter names are those of CLIP's released code. transformers has no
such model. Shipped beside the weights: imports from torch, transformers and siblings only.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ko_en_clip import KoEnClipResNetConfig
from .modeling_ko_en_clip_towers import KoEnClipPreTrainedModel, check_pixel_values, resized_positions

# Sides shrink by this in the stem and the stages.
REDUCTION = 32


class KoEnClipResNetBottleneck(nn.Module):
    """Bottleneck block whose stride is an average pool, in the branch before its last convolution and in the shortcut.

    Convolving first and pooling after keeps high frequencies from folding into low ones.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.bn3.init_gain = 0.0  # type: ignore[assignment]
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            # The names of CLIP's code: pool "-1", convolution "0", norm "1".
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(in_channels, out_channels, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out_channels)),
                    ]
                )
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        branch = self.bn1(self.conv1(hidden_states)).relu()
        branch = self.avgpool(self.bn2(self.conv2(branch)).relu())
        return (self.bn3(self.conv3(branch)) + self.downsample(hidden_states)).relu()


class KoEnClipAttnPool(nn.Module):
    """One layer of multi-head attention from the mean of a feature map to its places, then a linear projection."""

    def __init__(self, config: KoEnClipResNetConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.grid_size = config.image_size // REDUCTION
        self.positional_embedding = nn.Parameter(torch.randn(self.grid_size**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, config.projection_dim)
        for projection in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            projection.init_std = width**-0.5

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, D, rows, columns) -> (B, projection_dim)."""
        grid = (feature_map.shape[2], feature_map.shape[3])
        places = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        tokens = tokens + resized_positions(self.positional_embedding, self.grid_size, grid)

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        # One query: every attention implementation comes to the same, so that torch's own serves them all.
        pooled = nn.functional.scaled_dot_product_attention(
            heads(self.q_proj(tokens[:, :1])), heads(self.k_proj(tokens)), heads(self.v_proj(tokens))
        )
        return self.c_proj(pooled.transpose(1, 2).flatten(1))


class KoEnClipResNetModel(KoEnClipPreTrainedModel):
    """CLIP's modified ResNet for pictures of any size; its pooled output is in the joint space already."""

    config: KoEnClipResNetConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _no_split_modules = ["KoEnClipResNetBottleneck"]
    _input_embed_layer = "conv1"
    # Recomputing a block would move the running statistics of its batch norms a second time.
    supports_gradient_checkpointing = False
    _can_record_outputs = {"hidden_states": KoEnClipResNetBottleneck}

    def __init__(self, config: KoEnClipResNetConfig):
        super().__init__(config)
        width = config.hidden_size // REDUCTION
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        stages, in_channels = [], width
        for stage, depth in enumerate(config.depths):
            channels = width * 2**stage
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(KoEnClipResNetBottleneck(in_channels, channels, stride))
                in_channels = channels * KoEnClipResNetBottleneck.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = KoEnClipAttnPool(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module.

        CLIP's own scheme (`initialize_parameters` of its released code): the last norm of every block starts at 0, so
        that blocks start as shortcuts; attention pool w^-0.5, its biases 0 as transformers has them; convolutions as
        torch has them.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, nn.BatchNorm2d) and hasattr(module, "init_gain"):
            # On the norm itself: transformers passes over blocks, which have no weights of their own.
            init.constant_(module.weight, module.init_gain)  # type: ignore[arg-type]
        elif isinstance(module, KoEnClipAttnPool):
            std = self.config.hidden_size**-0.5 * self.config.initializer_factor
            init.normal_(module.positional_embedding, std=std)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""Encode pictures.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised pixels; both sides multiples of 32. Sizes other than `config.image_size` resize the
                attention pool's position table.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` the feature map `(batch_size, hidden_size, height / 32,
            width / 32)`, `pooler_output` the attention pool's `(batch_size, projection_dim)`.

        Raises:
            ValueError: as [`check_pixel_values`].
        """
        check_pixel_values(pixel_values, self.config.num_channels, REDUCTION)
        assert pixel_values is not None
        hidden_states = pixel_values.to(self.conv1.weight.dtype)
        stem: list[tuple[Any, Any]] = [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]
        for convolution, norm in stem:
            hidden_states = norm(convolution(hidden_states)).relu()
        hidden_states = self.avgpool(hidden_states)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden_states = stage(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=self.attnpool(hidden_states))


__all__ = ["KoEnClipResNetModel"]
