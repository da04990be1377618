"""The native towers: CLIP's vision transformer and its causal text transformer, and the base class of all models here.

The towers are CLIP's (Radford et al. 2021, section 2.4): they subclass transformers' classes, keep their parameter
names, and differ where CLIP's cannot do what is needed: pictures of any size, a visible subset of patches (masked
pre-training, FLIP), text computed over real tokens only, checked input. Used by `modeling_ko_en_clip.py` and
`modeling_ko_en_clip_mae.py`. Shipped beside the weights: imports from torch, transformers and siblings only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPPreTrainedModel, CLIPTextModel, CLIPVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ko_en_clip import KoEnClipConfig, KoEnClipTextConfig, KoEnClipVisionConfig

# Rows are packed where tokens fill less than this share of a batch cut to its longest row. Where there is nothing to
# save, packing costs 4 % more than cutting (benchmarks/text_padding.py).
PACKED_SHARE = 0.9


class KoEnClipPreTrainedModel(CLIPPreTrainedModel):
    """Base of all models here: weight initialisation, loading and saving."""

    config: KoEnClipConfig  # type: ignore[assignment]
    base_model_prefix = "ko_en_clip"
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "KoEnClipVisionEmbeddings"]
    # The loss divides by its own row count: Trainer must neither rescale it by processes nor pass it item counts.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module.

        CLIP's own scheme (`initialize_parameters` of its released code): query, key and value w^-0.5, the projections
        back into the residual stream w^-0.5 * (2L)^-0.5, first MLP layer (2w)^-0.5, projections w^-0.5. transformers
        has the standard deviations of attention's input and output the other way round; ours are CLIP's. Positions of
        texts have transformers' 0.02, where CLIP has 0.01.
        """
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, nn.Linear) and hasattr(module, "init_std"):
            init.normal_(module.weight, std=float(module.init_std) * factor)  # type: ignore[arg-type]
        elif isinstance(module, KoEnClipVisionEmbeddings):
            std = module.hidden_size**-0.5 * factor
            init.normal_(module.class_embedding, std=std)
            init.normal_(module.position_embedding.weight, std=std)
            init.normal_(module.patch_embedding.weight, std=module.initializer_range * factor)


def _plan_init(encoder: Any, hidden_size: int, num_hidden_layers: int) -> None:
    """Note on each linear layer of a tower the standard deviation that CLIP initialises it with.

    transformers initialises custom code module by module and skips those without weights of their own, attention and
    MLP among them, so the layers themselves have to carry the number.
    """
    residual_std = hidden_size**-0.5 * (2 * num_hidden_layers) ** -0.5
    for layer in encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.init_std = hidden_size**-0.5
        attention.out_proj.init_std = residual_std
        mlp.fc1.init_std = (2 * hidden_size) ** -0.5
        mlp.fc2.init_std = residual_std


def resized_positions(table: torch.Tensor, grid_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings of the first token and of a grid of patches, row by row.

    The table is resized bicubically, rows to rows and columns to columns, where the grid is not the table's own.

    Args:
        table (`torch.Tensor` of shape `(1 + grid_size ** 2, hidden_size)`): the first token's position comes first.
        grid_size (`int`): rows, and columns, of the table.
        grid (`tuple[int, int]`): rows and columns wanted.

    Returns:
        `torch.Tensor` of shape `(1 + rows * columns, hidden_size)`, in the table's dtype.
    """
    if grid == (grid_size, grid_size):
        return table
    # (N, D) -> (1, D, rows, columns) -> resized -> (N', D)
    places = table[1:].reshape(1, grid_size, grid_size, -1).permute(0, 3, 1, 2)
    places = nn.functional.interpolate(places.float(), size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], places.flatten(2)[0].T.to(table.dtype)])


def random_visible_patches(noise: torch.Tensor, num_visible: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches that stay, and the mask of those that do not (He et al. 2022, section 3, "simple implementation").

    Args:
        noise (`torch.Tensor` of shape `(batch_size, num_patches)`): one random number a patch; the smallest stay.
        num_visible (`int`): how many stay.

    Returns:
        numbers of visible patches, int64, `(batch_size, num_visible)`, in rising order; and the mask, in the dtype of
        `noise`, `(batch_size, num_patches)`: 0 kept, 1 removed.
    """
    visible_patches = noise.argsort(dim=1)[:, :num_visible].sort(dim=1).values
    mask = torch.ones_like(noise).scatter_(1, visible_patches, 0.0)
    return visible_patches, mask


def values_can_be_read(tensor: torch.Tensor) -> bool:
    """Whether looking at values costs nothing but the look: on the CPU, outside compile, export and tracing.

    Anywhere else a look would break the graph or wait for the device; there the processor and the collator have
    checked.
    """
    return tensor.device.type == "cpu" and not _makes_graph()


def _makes_graph() -> bool:
    """Whether compile, export or tracing is under way, where what depends on values or lengths would be frozen."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def first_eos(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Place of the first EOS of each row, int64, (batch,); 0 where there is none, which [`check_eos`] refuses."""
    return torch.eq(input_ids, eos_token_id).int().argmax(dim=1)


def check_pixel_values(pixel_values: torch.Tensor | None, num_channels: int, multiple: int = 1) -> None:
    """Check a batch of pictures.

    Raises:
        ValueError: it is missing, of another rank or channel count, empty, not of floating point, of sides that are
            no multiples of `multiple`; or, where values can be read, not finite.
    """
    if pixel_values is None:
        raise ValueError("pixel_values is missing: the vision tower needs pictures.")
    shape = tuple(pixel_values.shape)
    if pixel_values.dim() != 4 or shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {shape}; it must be (batch, {num_channels}, height, width). "
            "KoEnClipImageProcessor makes it so."
        )
    if shape[0] == 0:
        raise ValueError(f"pixel_values has shape {shape}: the batch is empty. Give at least one picture.")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is of {pixel_values.dtype}; it must be of floating point, rescaled and normalised. "
            "KoEnClipImageProcessor makes it so."
        )
    if shape[2] % multiple or shape[3] % multiple or not shape[2] or not shape[3]:
        raise ValueError(
            f"pixel_values is {shape[2]} x {shape[3]} pixels; both sides must be multiples of {multiple}. Resize the "
            "pictures, or set crop_size in the image processor."
        )
    if values_can_be_read(pixel_values) and not torch.isfinite(pixel_values).all():
        row = int((~torch.isfinite(pixel_values)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"pixel_values row {row} holds NaN or infinity; leave that picture out, or load it anew.")


def check_tokens(input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, vocab_size: int) -> None:
    """Check a batch of texts, for any tower.

    Raises:
        ValueError: it is missing, of another rank, empty or not of whole numbers, or the mask is of another shape; or,
            where values can be read, an id is outside the vocabulary.
    """
    if input_ids is None:
        raise ValueError("input_ids is missing: the text tower needs tokens.")
    shape = tuple(input_ids.shape)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {shape}; it must be (batch, tokens).")
    if not shape[0] or not shape[1]:
        raise ValueError(f"input_ids has shape {shape}: it is empty. Give at least one text.")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"input_ids is of {input_ids.dtype}; token ids are int64 (or int32).")
    # A mask of four dimensions is one of attention itself, as transformers takes it.
    if attention_mask is not None and attention_mask.dim() != 4 and attention_mask.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; input_ids has {shape}.")
    if values_can_be_read(input_ids):
        outside = ((input_ids < 0) | (input_ids >= vocab_size)).any(dim=1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"input_ids row {row} holds ids outside 0..{vocab_size - 1}: {input_ids[row].tolist()}. "
                "Use the tokenizer that was saved with this model."
            )


def check_length(input_ids: torch.Tensor, longest: int) -> None:
    """Check that texts are no longer than the position table.

    Raises:
        ValueError: they are.
    """
    if input_ids.shape[1] > longest:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens a row; the position table ends at {longest}. Let the "
            "tokenizer truncate (truncation=True)."
        )


def check_eos(input_ids: torch.Tensor, eos_token_id: int) -> None:
    """Check that every text can be pooled at its EOS.

    Raises:
        ValueError: a row has none.
    """
    without_eos = ~torch.eq(input_ids, eos_token_id).any(dim=1)
    if without_eos.any():
        row = int(without_eos.nonzero()[0])
        raise ValueError(
            f"input_ids row {row} has no EOS (id {eos_token_id}), at which texts are pooled: "
            f"{input_ids[row].tolist()}. Tokenize with special tokens, and let the tokenizer truncate."
        )


def _check_visible_patches(visible_patches: torch.Tensor, patches: torch.Tensor) -> None:
    batch_size, num_patches, _ = patches.shape
    if visible_patches.dim() != 2 or visible_patches.shape[0] != batch_size or visible_patches.shape[1] == 0:
        raise ValueError(
            f"visible_patches has shape {tuple(visible_patches.shape)}; it must be ({batch_size}, visible) with at "
            "least one visible patch."
        )
    if visible_patches.dtype != torch.int64:
        raise ValueError(f"visible_patches is of {visible_patches.dtype}; numbers of patches are int64.")
    if values_can_be_read(visible_patches):
        lowest, highest = int(visible_patches.min()), int(visible_patches.max())
        if lowest < 0 or highest >= num_patches:
            raise ValueError(
                f"visible_patches goes from {lowest} to {highest}; pictures of this size have patches 0 to "
                f"{num_patches - 1}."
            )


class KoEnClipVisionEmbeddings(nn.Module):
    """Patches plus positions, for pictures of any size that patches tile, whole or in part."""

    def __init__(self, config: KoEnClipVisionConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.initializer_range = config.initializer_range
        self.grid_size = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(self.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, self.hidden_size, kernel_size=self.patch_size, stride=self.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(self.grid_size**2 + 1, self.hidden_size)

    def forward(self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the class token, then of the patches: all, row by row, or those of `visible_patches`."""
        batch_size, _, height, width = pixel_values.shape
        # (B, D, rows, columns) -> (B, rows * columns, D)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        grid = (height // self.patch_size, width // self.patch_size)
        positions = resized_positions(self.position_embedding.weight, self.grid_size, grid)
        patches = patches + positions[1:]
        if visible_patches is not None:
            _check_visible_patches(visible_patches, patches)
            patches = patches.gather(1, visible_patches[:, :, None].expand(-1, -1, self.hidden_size))
        class_token = (self.class_embedding + positions[0]).expand(batch_size, 1, -1)
        return torch.cat([class_token, patches], dim=1)


class KoEnClipVisionModel(CLIPVisionModel, KoEnClipPreTrainedModel):
    """CLIP's vision transformer for pictures of any size, without projection."""

    config: KoEnClipVisionConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"

    def __init__(self, config: KoEnClipVisionConfig):
        super().__init__(config)
        self.embeddings = KoEnClipVisionEmbeddings(config)  # type: ignore[assignment]
        self.post_init()

    def post_init(self) -> None:
        """Plan the initial weights before they are drawn."""
        _plan_init(self.encoder, self.config.hidden_size, self.config.num_hidden_layers)
        super().post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        visible_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode pictures.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised pixels; both sides multiples of the patch size. Sizes other than `config.image_size` resize
                the position table.
            visible_patches (`torch.Tensor` of shape `(batch_size, num_visible)`, int64, *optional*):
                Patches to encode, numbered row by row from 0; the others are not computed at all (He et al. 2022,
                section 3). Default: every patch, or, in training with `config.patch_dropout`, what
                [`~KoEnClipVisionModel.draw_visible_patches`] draws.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of the class token and the patches before the last layer
            norm, `pooler_output` the class token after it.

        Raises:
            ValueError: as [`check_pixel_values`]; or patches that the pictures do not have.
        """
        check_pixel_values(pixel_values, self.config.num_channels, self.config.patch_size)
        assert pixel_values is not None
        if visible_patches is None and self.training and self.config.patch_dropout > 0:
            visible_patches = self.draw_visible_patches(pixel_values)
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, visible_patches))
        last_hidden_state = self.encoder(inputs_embeds=hidden_states, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=self.post_layernorm(last_hidden_state[:, 0])
        )

    def draw_visible_patches(
        self, pixel_values: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        r"""Patches that stay when `config.patch_dropout` of them are left out, drawn for each picture by itself.

        Drawn beforehand with a generator and given to `forward`, the same patches can be had again.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): the pictures.
            generator (`torch.Generator`, *optional*): where the draw comes from; default: torch's own.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_visible)`, int64, in rising order.

        Reference:
            Li et al. 2023 (FLIP), section 3.
        """
        patch_size = self.config.patch_size
        num_patches = (pixel_values.shape[2] // patch_size) * (pixel_values.shape[3] // patch_size)
        num_visible = max(1, round(num_patches * (1 - self.config.patch_dropout)))
        device = generator.device if generator is not None else pixel_values.device
        noise = torch.rand(pixel_values.shape[0], num_patches, generator=generator, device=device)
        return random_visible_patches(noise, num_visible)[0].to(pixel_values.device)


class TextPacking(NamedTuple):
    """Where the tokens of a batch stand when its rows are laid end to end without padding.

    Args:
        shape: rows, and tokens of the longest.
        places: int64, (tokens of all rows,): each token's place in the flattened batch of that shape.
        positions: int64, of the same shape: each token's position in its row.
        ends: int64, (rows,): the last token of each row.
    """

    shape: tuple[int, int]
    places: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "TextPacking":
        """The packing of rows of these lengths; made on the host, then sent."""
        lengths_B = torch.tensor(lengths)
        longest, ends = int(lengths_B.max()), lengths_B.cumsum(0)
        rows = torch.arange(len(lengths)).repeat_interleave(lengths_B)
        positions = torch.arange(int(ends[-1])) - (ends - lengths_B)[rows]
        tensors = (rows * longest + positions, positions, ends - 1)
        return cls((len(lengths), longest), *(tensor.to(device, non_blocking=True) for tensor in tensors))

    def padded(self, packed: torch.Tensor) -> torch.Tensor:
        """Rows side by side, (rows, longest, width), from tokens end to end, (tokens, width); zeros for padding."""
        rows, longest = self.shape
        grid = packed.new_zeros(rows * longest, packed.shape[-1]).index_copy(0, self.places, packed)
        return grid.view(rows, longest, -1)

    def packed(self, padded: torch.Tensor) -> torch.Tensor:
        """The inverse of [`padded`]."""
        return padded.flatten(0, 1)[self.places]


class KoEnClipAttention(CLIPAttention):
    """CLIP's attention, which also takes rows laid end to end: each looks back over its own tokens only."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packing: TextPacking | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As CLIP's; with `packing`, `hidden_states` is (1, tokens of all rows, width), and no weights come back."""
        if packing is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        # The linear layers, nearly all of the work, see real tokens only. Attention itself goes row by row, side by
        # side: a block-diagonal mask over all tokens would cost their number squared.
        queries, keys, values = (
            packing.padded(projection(hidden_states[0])).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = float(self.dropout or 0.0) if self.training else 0.0
        if self.config._attn_implementation == "eager":
            attended = _eager_causal_attention(queries, keys, values, self.scale, dropout)
        else:
            attended = nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self.scale, dropout_p=dropout
            )
        return self.out_proj(packing.packed(attended.transpose(1, 2).flatten(2)))[None], None


def _eager_causal_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Attention of each token to itself and those before it: a row of scores always keeps one that is finite."""
    scores = queries @ keys.transpose(-1, -2) * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    return nn.functional.dropout(weights, p=dropout) @ values


class KoEnClipTextModel(CLIPTextModel, KoEnClipPreTrainedModel):
    """CLIP's causal text transformer, pooled at EOS and computed over real tokens only, without projection."""

    config: KoEnClipTextConfig  # type: ignore[assignment]
    base_model_prefix = "text_model"

    def __init__(self, config: KoEnClipTextConfig):
        super().__init__(config)
        for layer in self.encoder.layers:
            layer.self_attn = KoEnClipAttention(config)
        self.post_init()

    def post_init(self) -> None:
        """Plan the initial weights before they are drawn."""
        _plan_init(self.encoder, self.config.hidden_size, self.config.num_hidden_layers)
        super().post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        text_lengths: Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode texts.

        Where the number of tokens of each row is known, padding costs nothing: columns that are padding in every row
        are cut off, and where much is left, rows are laid end to end without any. It is known from `text_lengths`, or
        read from `input_ids` on the CPU outside compile and export. Asked for hidden states or attentions, the tower
        computes every column.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64):
                Tokens; every row holds `config.eos_token_id`.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions, where they are not 0, 1, 2 and so on.
            text_lengths (sequence of `int`, *optional*):
                Tokens of each row up to and with its first EOS, from the host, so that nothing waits for the device.
                Rows must then be padded on the right.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` after the last layer norm, zero after the first EOS of
            each text, `pooler_output` its row at the first EOS.

        Raises:
            ValueError: an input is missing, misshapen, empty, not of whole numbers, or longer than the position table.
                On the CPU, outside compile and export, also: a row has no EOS, an id is outside the vocabulary, or
                `text_lengths` does not end at the EOS. On other devices these are the tokenizer's and the collator's
                to check, so that nothing waits for the device.
        """
        self._check_input(input_ids, attention_mask, position_ids)
        assert input_ids is not None
        lengths = None
        if not _makes_graph():
            lengths = self._lengths(input_ids, attention_mask, position_ids, text_lengths)
        if lengths is None or _wants_layers(kwargs, self.config):
            if (
                attention_mask is not None
                and attention_mask.dim() == 2
                and self.config._attn_implementation == "eager"
            ):
                attention_mask = _additive_mask(attention_mask, self.embeddings.token_embedding.weight.dtype)
            outputs = super().forward(input_ids, attention_mask, position_ids, **{**kwargs, "return_dict": True})
        else:
            outputs = self._forward_real_tokens(input_ids, lengths, **{**kwargs, "return_dict": True})
        is_eos = torch.eq(input_ids, self.config.eos_token_id).int()  # type: ignore[arg-type]
        after_eos = (is_eos.cumsum(dim=1) - is_eos)[:, :, None] > 0
        outputs.last_hidden_state = outputs.last_hidden_state.masked_fill(after_eos, 0.0)
        return outputs

    def _forward_real_tokens(
        self, input_ids: torch.Tensor, lengths: Sequence[int], **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`forward` of rows padded on the right: cut to the longest, and packed where that pays."""
        num_columns, longest = input_ids.shape[1], max(lengths)
        input_ids = input_ids[:, :longest]
        if sum(lengths) < PACKED_SHARE * input_ids.numel():
            outputs = self._forward_packed(input_ids, TextPacking.of(lengths, input_ids.device), **kwargs)
        else:
            # Attention looks back only, so that padding on the right needs no mask.
            outputs = super().forward(input_ids, **kwargs)
        missing = (0, 0, 0, num_columns - longest)
        outputs.last_hidden_state = nn.functional.pad(outputs.last_hidden_state, missing)  # type: ignore[arg-type]
        return outputs

    def _forward_packed(
        self, input_ids: torch.Tensor, packing: TextPacking, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        embeddings = self.embeddings
        hidden_states = embeddings.token_embedding(packing.packed(input_ids))
        hidden_states = hidden_states + embeddings.position_embedding(packing.positions)
        encoded = self.encoder(inputs_embeds=hidden_states[None], packing=packing, **kwargs).last_hidden_state[0]
        encoded = self.final_layer_norm(encoded)
        return BaseModelOutputWithPooling(
            last_hidden_state=packing.padded(encoded), pooler_output=encoded[packing.ends]
        )

    def _check_input(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> None:
        check_tokens(input_ids, attention_mask, self.config.vocab_size)
        assert input_ids is not None
        batch_size, num_columns = input_ids.shape
        longest = self.config.max_position_embeddings
        check_length(input_ids, longest)
        if position_ids is not None:
            if position_ids.shape not in ((batch_size, num_columns), (1, num_columns)):
                raise ValueError(
                    f"position_ids has shape {tuple(position_ids.shape)}; input_ids has {tuple(input_ids.shape)}."
                )
            if values_can_be_read(position_ids) and not 0 <= position_ids.min() <= position_ids.max() < longest:
                raise ValueError(
                    f"position_ids goes from {int(position_ids.min())} to {int(position_ids.max())}; the position "
                    f"table has 0 to {longest - 1}."
                )
        if values_can_be_read(input_ids):
            check_eos(input_ids, self.config.eos_token_id)  # type: ignore[arg-type]

    def _lengths(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        text_lengths: Sequence[int] | None,
    ) -> Sequence[int] | None:
        """Tokens of each row up to its first EOS, where they are known and stand at the left."""
        if position_ids is not None:
            return None
        if not values_can_be_read(input_ids):
            if text_lengths is not None:
                _check_lengths(text_lengths, input_ids)
            return text_lengths
        lengths = first_eos(input_ids, self.config.eos_token_id) + 1  # type: ignore[arg-type]
        if text_lengths is not None and list(text_lengths) != lengths.tolist():
            raise ValueError(
                f"text_lengths is {list(text_lengths)}; the first EOS of each row (id {self.config.eos_token_id}) "
                f"makes it {lengths.tolist()}."
            )
        if attention_mask is not None and not _starts_with(attention_mask, lengths):
            return None
        return lengths.tolist()


def _additive_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What eager attention adds to scores, (batch, 1, tokens, tokens): 0 where a token looks, far below 0 elsewhere.

    Half of the lowest number there is: transformers adds the lowest itself, and with scores below 0 in half precision
    a token that sees nothing, as one of padding on the left, would have nothing but infinities to choose from.
    """
    num_tokens = attention_mask.shape[1]
    earlier = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=attention_mask.device).tril()
    seen = earlier & attention_mask[:, None, None, :].bool()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min / 2)


def _starts_with(attention_mask: torch.Tensor, lengths: torch.Tensor) -> bool:
    """Whether no row of a mask hides any of its first tokens, as padding on the left does."""
    return attention_mask.dim() == 2 and bool((attention_mask.cumprod(dim=1).sum(dim=1) >= lengths).all())


def _wants_layers(kwargs: Any, config: KoEnClipTextConfig) -> bool:
    """Whether hidden states or attentions of every layer are asked for."""
    return any(kwargs.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions"))


def _check_lengths(text_lengths: Sequence[int], input_ids: torch.Tensor) -> None:
    batch_size, num_columns = input_ids.shape
    if len(text_lengths) != batch_size or not all(1 <= length <= num_columns for length in text_lengths):
        raise ValueError(
            f"text_lengths is {list(text_lengths)}; it needs one number from 1 to {num_columns} for each of "
            f"{batch_size} rows."
        )
