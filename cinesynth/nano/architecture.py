"""The nano model: Wan2.1-I2V's classes, files and conditioning at a few million parameters.

`cinesynth.nano` trains its weights and installs them in the package. `build_nano` writes the same model with random
weights. That training starts there, and its figures are compared with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from cinesynth.scripted.photographs import PHOTOGRAPHS
from cinesynth.scripted.screenplay import sample_captions
from cinesynth.scripted.vocabulary import FILM_LOOK
from cinesynth.wan.family import WAN21_I2V

VOCABULARY = 2048
CAPTIONS = 4000
TEXT_DIM = 64
IMAGE_DIM = 64
VAE_BASE_DIM = 16
HEADS, HEAD_DIM, LAYERS, FFN_DIM = 4, 64, 6, 512


@dataclass
class NanoParts:
    """The components of the model, in fp32."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    image_processor: CLIPImageProcessor
    image_encoder: CLIPVisionModel
    transformer: WanTransformer3DModel


def nano_parts(seed: int = 0) -> NanoParts:
    """All components with random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NanoParts(
            _tokenizer(),
            _text_encoder(),
            _vae(),
            CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_convert_rgb=True),
            _image_encoder(),
            _transformer(),
        )


def save_nano(parts: NanoParts, folder: str | os.PathLike[str]) -> Path:
    """Write the model as a diffusers folder, weights in fp16; `parts` are cast in place."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=int(WAN21_I2V.timesteps),
        flow_shift=5.0,
    )
    components: dict[str, Any] = vars(parts)
    # What diffusers warns of when casting matters to weights that are trained on; these are not, here.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for component in (parts.text_encoder, parts.vae, parts.image_encoder, parts.transformer):
        component.to(dtype=torch.float16)  # type: ignore[call-arg]
    WanImageToVideoPipeline(**components, scheduler=scheduler).save_pretrained(os.fspath(folder))
    diffusers.utils.logging.set_verbosity_warning()
    return Path(folder)


def build_nano(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write the model with random weights; the same bytes each time."""
    return save_nano(nano_parts(seed), folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the scripted clips' captions: any text encodes, known words are one or two pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    captions = sample_captions(CAPTIONS, seed=0, photographs=tuple(PHOTOGRAPHS))
    tokenizer.train_from_iterator([*captions, *[FILM_LOOK] * 10], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=WAN21_I2V.text_tokens,
    )


def _text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=VOCABULARY,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    ).eval()


def _image_encoder() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=IMAGE_DIM,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=16,
        )
    ).eval()


def _vae() -> AutoencoderKLWan:
    """Patches of 2x2 pixels, then two halvings of each side and of time: Wan2.1's strides, at half the layers."""
    return AutoencoderKLWan(
        base_dim=VAE_BASE_DIM,
        z_dim=WAN21_I2V.latent_channels,
        dim_mult=[2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
    ).eval()


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=WAN21_I2V.in_channels,
        out_channels=WAN21_I2V.latent_channels,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=FFN_DIM,
        num_layers=LAYERS,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=HEADS * HEAD_DIM,
        rope_max_seq_len=64,
    ).eval()
