"""The nano model: Wan2.1-I2V's classes, files and 36-channel conditioning at a few million parameters.

`build_nano` writes a diffusers folder that `WanImageToVideoPipeline.from_pretrained` loads. The weights are
random, drawn from a seed, and the latent statistics are measured, so that latents have unit variance as Wan's do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

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

from cinesynth.data.screenplay import sample_captions
from cinesynth.storage import sha256_json

VOCABULARY = 2048
CAPTIONS = 2000
TEXT_DIM = 64
IMAGE_DIM = 64
RECIPE = {"version": 1, "vae_base_dim": 16, "heads": 4, "head_dim": 32, "layers": 8, "ffn_dim": 384, "seed": 0}


def nano_folder() -> Path:
    """The nano model's folder in the cache, built on first use (a few seconds)."""
    cache = Path(os.environ.get("CINESYNTH_CACHE") or Path.home() / ".cache" / "cinesynth")
    target = cache / "models" / f"nano-{sha256_json([RECIPE, sample_captions(CAPTIONS, seed=0)])[:12]}"
    if (target / "model_index.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        build_nano(temporary)
        os.rename(temporary, target)
    except OSError:
        if not (target / "model_index.json").is_file():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def build_nano(folder: str | os.PathLike[str]) -> Path:
    """Write the nano model (fp16 safetensors, about 14 MB) as a diffusers folder; the same bytes each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(RECIPE["seed"]))
        pipeline = WanImageToVideoPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            vae=_vae(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
            ),
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_convert_rgb=True
            ),
            image_encoder=_image_encoder(),
            transformer=_transformer(),
        )
    # What diffusers warns of when casting matters to pretrained weights; these are random.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for component in (pipeline.text_encoder, pipeline.vae, pipeline.image_encoder, pipeline.transformer):
        component.to(torch.float16)
    pipeline.save_pretrained(os.fspath(folder), safe_serialization=True)
    diffusers.utils.logging.set_verbosity_warning()
    return Path(folder)


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
    tokenizer.train_from_iterator(sample_captions(CAPTIONS, seed=0), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
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
    vae = AutoencoderKLWan(base_dim=int(RECIPE["vae_base_dim"]), z_dim=16, num_res_blocks=1).eval()
    # Smooth drifting colours stand in for footage: coarse noise, interpolated in time and space.
    coarse_BCTHW = torch.rand(4, 3, 5, 4, 6)
    video_BCTHW = torch.nn.functional.interpolate(coarse_BCTHW, size=(17, 64, 96), mode="trilinear") * 2 - 1
    with torch.no_grad():
        z = vae.encode(video_BCTHW).latent_dist.mode()
    vae.register_to_config(
        latents_mean=[round(float(v), 6) for v in z.mean(dim=(0, 2, 3, 4))],
        latents_std=[round(float(v), 6) for v in z.std(dim=(0, 2, 3, 4)).clamp_min(1e-4)],
    )
    return vae


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=int(RECIPE["heads"]),
        attention_head_dim=int(RECIPE["head_dim"]),
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=int(RECIPE["ffn_dim"]),
        num_layers=int(RECIPE["layers"]),
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=int(RECIPE["heads"]) * int(RECIPE["head_dim"]),
        rope_max_seq_len=64,
    ).eval()
