"""Groups of gloo ranks, each spawned once: they make what one process makes, and agree on what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from torch._dynamo.utils import counters

from cinesynth.config import SamplerSettings
from cinesynth.errors import ConfigError, MediaError
from cinesynth.generate.course import Course
from cinesynth.generate.denoise import Conditions
from cinesynth.generate.ranks import Plan, Ranks, choose_plan
from cinesynth.generate.sampler import Generator
from cinesynth.generate.shape import check_group
from cinesynth.generate.state import SamplerState
from cinesynth.wan.adapter import save_adapter
from cinesynth.wan.card import AdapterCard
from cinesynth.wan.divided_vae import decode_rows
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash, model_spec
from cinesynth.wan.kernels import Kernels
from cinesynth.wan.latents import latent_statistics
from cinesynth.wan.load import load_transformer, load_vae
from cinesynth.wan.lora import add_lora
from tests.adapters import adapter_state

SIZES = (2, 4)
STEPS = 4
GUIDED = SamplerSettings(steps=STEPS, guidance_scale=3.0, seed=5)
PLAIN = SamplerSettings(steps=STEPS, guidance_scale=1.0, seed=5)


class Recorded(Generator):
    """Keeps latents and frames of the last video."""

    frames: torch.Tensor

    def make(self, conditions: Conditions, sampler: SamplerSettings, course: Course = Course()) -> torch.Tensor:  # noqa: B008
        from cinesynth.generate import sampler as module

        kept: list[torch.Tensor] = []
        original = module.denoise

        def denoise(*args: Any) -> torch.Tensor:
            kept.append(original(*args))
            return kept[0]

        module.denoise = denoise  # type: ignore[assignment]
        try:
            self.frames = torch.from_numpy(self.generate_from(conditions, sampler, course).frames)
        finally:
            module.denoise = original
        return kept[0]


def uneven(conditions: Conditions) -> Conditions:
    """45 tokens, which no group divides."""
    return Conditions(
        conditions.condition_latents[:, :, :6, :10].contiguous(),
        conditions.prompt_embeds,
        conditions.image_embeds,
        conditions.negative_embeds,
    )


def decoded(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Videos of random latents, by nano's VAE and by a tiny one of Wan2.1's own configuration."""
    torch.manual_seed(3)
    tiny = AutoencoderKLWan(base_dim=8, num_res_blocks=1).requires_grad_(False).eval()
    found = {}
    for name, vae in (("nano", load_vae("nano")), ("tiny", tiny)):
        latents = torch.randn(1, 16, 3, 5, 6)
        with torch.inference_mode():
            video = (
                vae.decode(latents, return_dict=False)[0]
                if ranks.size == 1
                else decode_rows(vae, latents, ranks.rank, ranks.size)
            )
        found |= {f"decoded by {name}": video} if video is not None else {}
    return found


def raised(action: Any) -> str:
    try:
        action()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "nothing"


def group(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Everything that a group is asked for. All ranks do the same."""
    conditions = Conditions(**torch.load(folder / "conditions.pt", weights_only=True))
    adapter = folder / "adapter"
    generator = Recorded("nano", ranks=ranks)
    found: dict[str, Any] = {}
    kept: list[SamplerState] = []
    found["guided"] = generator.make(conditions, GUIDED, Course(keep_every=2, keep=kept.append))
    found["frames of guided"] = generator.frames
    found["plain"] = generator.make(conditions, PLAIN)
    found["uneven guided"] = generator.make(uneven(conditions), GUIDED)
    found["uneven plain"] = generator.make(uneven(conditions), PLAIN)
    found["frames of uneven plain"] = generator.frames
    found |= decoded(ranks)

    state = SamplerState.from_bytes(ranks.broadcast(kept[0].to_bytes() if kept else None))
    steps: list[int] = []
    going_on = Course(state=state, on_step=lambda step, total: steps.append(step))
    found["continued"] = generator.make(conditions, GUIDED, going_on)
    found["steps continued"] = steps
    alone = SamplerState.from_bytes((folder / "state.safetensors").read_bytes())
    found["continued from one process"] = generator.make(conditions, GUIDED, Course(state=alone))
    found["another's state"] = raised(lambda: generator.make(conditions, PLAIN, Course(state=alone)))

    last = ranks.rank == ranks.size - 1
    seen: list[int] = []
    stopping = Course(on_step=lambda step, total: seen.append(step), stops=lambda: last and len(seen) == 1)
    found["cancelled"] = raised(lambda: generator.make(conditions, GUIDED, stopping))
    found["steps before"] = seen

    generator.load_adapters([(adapter, 1.0)])
    found["adapted"] = generator.make(conditions, PLAIN)
    missing = folder / "missing" if last else adapter
    found["half an adapter"] = raised(lambda: generator.load_adapters([(missing, 2.0)]))
    found["adapted still"] = generator.make(conditions, PLAIN)
    generator.load_adapters([])
    strategy = "fsdp2" if ranks.size > 1 else "replicate"
    shared = Recorded("nano", ranks=ranks, strategy=strategy)
    shared.load_adapters([(adapter, 1.0)])
    found["adapted, shared weights"] = shared.make(uneven(conditions), GUIDED)
    merging = Recorded("nano", ranks=ranks, strategy=strategy, merge=True)
    merging.load_adapters([(adapter, 1.0)])
    found["merged"] = merging.make(conditions, PLAIN)
    merging.load_adapters([])
    found["merged no more"] = merging.make(conditions, PLAIN)
    broken = Image.new("RGB", (8, 8)) if ranks.rank else None
    found["a first frame that fails"] = raised(
        lambda: generator.generate(broken, "p", 9, 64, 96, PLAIN)  # type: ignore[arg-type]
    )
    found["not finite"] = raised(lambda: generator.make(conditions, PLAIN.model_copy(update={"flow_shift": 1e-300})))
    (transformer,) = generator.experts.values()
    for block in transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    found["stock"] = generator.make(conditions, PLAIN)
    return found


def computed(ranks: Ranks, folder: Path, kernels: Kernels) -> dict[str, Any]:
    """Videos with and without an adapter, of tokens that two ranks divide and of such that they do not."""
    conditions = Conditions(**torch.load(folder / "conditions.pt", weights_only=True))
    generator = Recorded("nano", ranks=ranks, kernels=kernels)
    found: dict[str, Any] = {}
    graphs = []
    adapter = [(folder / "adapter", 1.0)]
    for what, given, sampler, adapters in (
        ("plain", conditions, PLAIN, []),
        ("plain again", conditions, PLAIN, []),
        ("adapted", conditions, PLAIN, adapter),
        ("guided", conditions, GUIDED, []),
        ("uneven plain", uneven(conditions), PLAIN, []),
    ):
        before = counters["stats"]["unique_graphs"]
        generator.load_adapters(adapters)
        found[what] = generator.make(given, sampler)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    found["graphs"] = graphs
    return found


def _rank(rank: int, folder: str, size: int, compiled: bool = False) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    store = dist.FileStore(f"{folder}/rendezvous-{size}-{compiled}", size)
    dist.init_process_group("cpu:gloo", store=store, rank=rank, world_size=size)
    ranks = Ranks(rank, size)
    found = computed(ranks, Path(folder), Kernels(compiled=True)) if compiled else group(ranks, Path(folder))
    torch.save({k: v for k, v in found.items() if isinstance(v, torch.Tensor)}, f"{folder}/{size}-{rank}.pt")
    told = {k: v for k, v in found.items() if not isinstance(v, torch.Tensor)}
    Path(folder, f"{size}-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conditions of a video, and an adapter."""
    from tests.nano_clips import encoded_clips, encoder

    folder = tmp_path_factory.mktemp("ranks")
    clip = encoded_clips()[0]
    conditions = {name: clip[name] for name in ("condition_latents", "prompt_embeds", "image_embeds")}
    torch.save(conditions | {"negative_embeds": encoder().prompt_embeds("blurry")}, folder / "conditions.pt")
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, 4, 4.0, "all", 0)
    state = {k: v + 0.05 for k, v in adapter_state(transformer).items()}
    card = AdapterCard(
        base_model="nano",
        base_sha256=base_hash("nano"),
        stage="style",
        dataset="",
        dataset_sha256="",
        config={},
        step=1,
    )
    save_adapter(folder / "adapter", state, transformer.peft_config["default"], card)
    return folder


@pytest.fixture(scope="module")
def groups(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each group found; of 1 the one process."""
    generator = Recorded("nano")
    kept: list[SamplerState] = []
    loaded = Conditions(**torch.load(folder / "conditions.pt", weights_only=True))
    generator.make(loaded, GUIDED, Course(keep_every=2, keep=kept.append))
    (folder / "state.safetensors").write_bytes(kept[0].to_bytes())
    spawned = [mp.spawn(_rank, (str(folder), size), nprocs=size, join=False) for size in SIZES]
    found = {1: [group(Ranks(), folder)]}
    for context in spawned:
        while not context.join():
            pass
    for size in SIZES:
        found[size] = [
            torch.load(folder / f"{size}-{rank}.pt", weights_only=True)
            | json.loads((folder / f"{size}-{rank}.json").read_text())
            for rank in range(size)
        ]
    return found


def frames(latents: torch.Tensor) -> torch.Tensor:
    """Decoded, in [-1, 1]."""
    vae = load_vae("nano")
    mean, std = latent_statistics(model_spec("nano"), vae.device)
    with torch.inference_mode():
        return vae.decode(latents * std + mean, return_dict=False)[0]


MADE = (
    "guided",
    "plain",
    "uneven guided",
    "uneven plain",
    "continued",
    "continued from one process",
    "adapted",
    "adapted, shared weights",
    "merged",
    "merged no more",
    "stock",
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", MADE)
def test_a_group_makes_what_one_process_makes(groups: dict[int, list[dict[str, Any]]], size: int, what: str) -> None:
    one = frames(groups[1][0][what])
    for rank in range(size):
        assert torch.equal(groups[size][rank][what], groups[size][0][what])
    assert (frames(groups[size][0][what]) - one).abs().max() <= 1e-4
    assert one.std() > 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vae", ["nano", "tiny"])
def test_a_decode_over_ranks_is_the_whole_one(groups: dict[int, list[dict[str, Any]]], size: int, vae: str) -> None:
    """Five rows, which no group divides."""
    one = groups[1][0][f"decoded by {vae}"]
    assert (groups[size][0][f"decoded by {vae}"] - one).abs().max() <= 1e-5
    assert one.std() > 0.01
    assert all(f"decoded by {vae}" not in other for other in groups[size][1:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["frames of guided", "frames of uneven plain"])
def test_rank_0_has_the_frames(groups: dict[int, list[dict[str, Any]]], size: int, what: str) -> None:
    one, first = groups[1][0][what], groups[size][0][what]
    assert first.shape == one.shape
    assert (first.int() - one.int()).abs().max() <= 1
    assert all(len(other[what]) == 0 for other in groups[size][1:])


@pytest.mark.parametrize("size", [1, *SIZES])
def test_merged_adapters_do_what_those_beside_the_weights_do(
    groups: dict[int, list[dict[str, Any]]], size: int
) -> None:
    found = groups[size][0]
    assert (frames(found["merged"]) - frames(found["adapted"])).abs().max() <= 1e-4
    assert (frames(found["merged no more"]) - frames(found["plain"])).abs().max() <= 1e-4


def test_what_is_made_differs(groups: dict[int, list[dict[str, Any]]]) -> None:
    one = groups[1][0]
    for what in ("guided", "adapted"):
        assert (frames(one[what]) - frames(one["plain"])).abs().max() > 0.05


@pytest.mark.parametrize("size", [1, *SIZES])
def test_a_state_goes_on_bit_for_bit_on_the_same_group(groups: dict[int, list[dict[str, Any]]], size: int) -> None:
    for found in groups[size]:
        assert torch.equal(found["continued"], found["guided"])
        assert torch.allclose(found["continued from one process"], found["guided"], atol=1e-4)
        assert found["steps continued"] == [3, 4]
        assert found["another's state"].startswith("StateOfAnother: this state is of another request")


@pytest.mark.parametrize("size", [1, *SIZES])
def test_ranks_end_together(groups: dict[int, list[dict[str, Any]]], size: int) -> None:
    for rank, found in enumerate(groups[size]):
        assert found["cancelled"] == "Cancelled: after step 2 of 4"
        assert found["steps before"] == [1], rank
        assert found["not finite"].startswith("GenerationError: the latents are not finite after 4 steps")
        assert torch.equal(found["adapted still"], found["adapted"])
        if size > 1:
            assert found["half an adapter"].startswith(f"AdapterError: rank {size - 1}: ")
            assert found["a first frame that fails"].startswith("BrokenModel: rank 0: AttributeError")


def test_guidance_is_divided_first() -> None:
    assert choose_plan(1, True, 45) == Plan(1, 1)
    assert choose_plan(2, True, 45) == Plan(2, 1)
    assert choose_plan(4, True, 72) == Plan(2, 2)
    assert choose_plan(4, True, 45) == Plan(2, 2, uneven=45)
    assert choose_plan(4, False, 72) == Plan(1, 4)
    assert choose_plan(5, True, 45) == Plan(1, 5)
    check_group(4, 40, "ranks")
    with pytest.raises(ConfigError, match=r"ranks = 3: the model's 4 attention heads do not divide .* one of 1, 2, 4"):
        check_group(3, 4, "ranks")


def test_a_state_is_read_as_it_was_written(groups: dict[int, list[dict[str, Any]]]) -> None:
    with pytest.raises(MediaError, match="this is no sampler state"):
        SamplerState.from_bytes(b"nothing")
    state = SamplerState(
        "r", 3, torch.ones(1, 2, 3), "UniPCMultistepScheduler", {"model_outputs": [None, torch.ones(2)]}
    )
    again = SamplerState.from_bytes(state.to_bytes())
    assert (again.request, again.step, again.scheduler) == ("r", 3, "UniPCMultistepScheduler")
    assert again.solver["model_outputs"][0] is None
    assert torch.equal(again.solver["model_outputs"][1], torch.ones(2))
    with pytest.raises(MediaError, match="this is no sampler state"):
        SamplerState.from_bytes(state.to_bytes()[:-9])


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.timeout(600)
def test_compiled_blocks_make_the_same(folder: Path) -> None:
    """Tokens that do not divide are computed eagerly, as their exchange does not compile."""
    eager = computed(Ranks(), folder, Kernels())
    mp.spawn(_rank, (str(folder), 2, True), nprocs=2)
    for rank in range(2):
        compiled = torch.load(folder / f"2-{rank}.pt", weights_only=True)
        assert set(compiled) == set(eager) - {"graphs"}
        plain, again, adapted, _, unequal = json.loads((folder / f"2-{rank}.json").read_text())["graphs"]
        assert plain > 0, "the blocks are compiled"
        assert adapted > 0, "and again with an adapter"
        assert again == unequal == 0
        for what, latents in compiled.items():
            assert (latents - eager[what]).abs().max() <= 1e-4
    assert (eager["adapted"] - eager["plain"]).abs().max() > 0.05
    assert not any(eager["graphs"])
