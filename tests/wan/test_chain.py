"""A chain of adapters as one computes what the chain computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cinesynth.config import PublishConfig
from cinesynth.errors import AdapterError
from cinesynth.publish import outline_publishing, publish
from cinesynth.registry import Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.wan.adapter import load_adapters, save_adapter
from cinesynth.wan.card import DIFFUSERS_FILE, AdapterCard, Parent, read_card
from cinesynth.wan.chain import concatenate
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash
from cinesynth.wan.load import load_transformer
from cinesynth.wan.lora import Targets, add_lora
from tests.adapters import adapter_state
from tests.wan.test_adapter import output

BASE = base_hash("nano")


def make(folder: Path, rank: int, targets: Targets, seed: int, parents: list[Parent]) -> Path:
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=rank, alpha=2 * rank, targets=targets, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    state = adapter_state(transformer)
    for key, value in state.items():
        if "lora_B" in key:
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    card = AdapterCard(
        base_model="nano",
        base_sha256=BASE,
        parents=parents,
        stage="motion" if parents else "style",
        dataset="d",
        dataset_sha256="d",
        config={},
        step=1,
    )
    save_adapter(folder, state, transformer.peft_config["default"], card)
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """A style adapter at scale 0.7, and a motion adapter of another rank that was trained on it."""
    folder = tmp_path_factory.mktemp("chain")
    style = make(folder / "style", 4, "cross_attention", 1, [])
    parent = Parent(sha256=read_card(style).sha256, scale=0.7)
    motion = make(folder / "motion", 2, ("cross", "self"), 2, [parent])
    return [(style, 0.7), (motion, 1.0)]


def test_one_adapter_computes_what_the_chain_computes(chain: list[tuple[Path, float]], tmp_path: Path) -> None:
    card = concatenate(chain, BASE, tmp_path / "one")
    assert card.parents == []
    assert [part["stage"] for part in card.config["chain"]] == ["style", "motion"]
    several, one, plain = (load_transformer("nano") for _ in range(3))
    load_adapters(several, chain, BASE)
    load_adapters(one, [(tmp_path / "one", 1.0)], BASE)
    torch.testing.assert_close(output(one), output(several), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(plain), output(several), atol=1e-3)
    theirs = load_transformer("nano")
    theirs.load_lora_adapter(str(tmp_path / "one"), weight_name=DIFFUSERS_FILE, prefix="transformer")
    torch.testing.assert_close(output(theirs), output(several), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layers", "rank"), [(r"proj_out|attn1\.to_q$", 40), (r"ffn\.net\.0\.proj$", 160)])
def test_a_layer_of_more_ranks_than_its_width_gets_the_product_of_them(layers: str, rank: int, tmp_path: Path) -> None:
    below = make(tmp_path / "below", rank, layers, 1, [])
    above = make(tmp_path / "above", rank, layers, 2, [Parent(sha256=read_card(below).sha256, scale=0.7)])
    chain = [(below, 0.7), (above, 1.0)]
    made = [concatenate(chain, BASE, tmp_path / name) for name in ("one", "again")]
    assert made[0] == made[1]
    several, one, theirs = (load_transformer("nano") for _ in range(3))
    load_adapters(several, chain, BASE)
    load_adapters(one, [(tmp_path / "one", 1.0)], BASE)
    torch.testing.assert_close(output(one), output(several), rtol=1e-4, atol=1e-4)
    theirs.load_lora_adapter(str(tmp_path / "one"), weight_name=DIFFUSERS_FILE, prefix="transformer")
    torch.testing.assert_close(output(theirs), output(one), rtol=1e-5, atol=1e-5)


def test_a_chain_in_another_order_is_refused(chain: list[tuple[Path, float]], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="was trained on top of"):
        concatenate(chain[::-1], BASE, tmp_path / "one")


def test_an_adapter_with_parents_is_published_as_one(chain: list[tuple[Path, float]], tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    (style, _), (motion, _) = chain
    values = {"name": "p", "storage": str(tmp_path), "adapter": str(motion), "adapter_name": "noir"}
    config = parse_config(PublishConfig, values)
    with pytest.raises(AdapterError, match="was trained on top of another"):
        publish(config)
    Registry(storage).publish(style, "style")
    result = publish(config)
    fetched = Registry(storage).fetch(result["outputs"]["adapter"], tmp_path / "cache")
    assert read_card(fetched).parents == []
    served, several = load_transformer("nano"), load_transformer("nano")
    load_adapters(served, [(fetched, 1.0)], BASE)
    load_adapters(several, chain, BASE)
    torch.testing.assert_close(output(served), output(several), rtol=1e-5, atol=1e-5)
    assert publish(config) == result


@pytest.mark.parametrize("lost", [False, True])
def test_exports_that_are_asked_for_later_move_no_alias(
    lost: bool, chain: list[tuple[Path, float]], tmp_path: Path
) -> None:
    storage, (style, _) = Storage.open(tmp_path), chain[0]
    other = make(tmp_path / "other", 4, "cross_attention", 3, [])
    first = {"name": "a", "storage": str(tmp_path), "adapter": str(style), "adapter_name": "noir", "version": "v1"}
    second = first | {"name": "b", "adapter": str(other), "version": "v2"}
    asked = parse_config(PublishConfig, first | {"exports": ["kohya"]})
    result = publish(asked if lost else parse_config(PublishConfig, first))
    publish(parse_config(PublishConfig, second))
    if lost:
        Path(result["outputs"]["export/kohya"]).unlink()
    assert "stays where it is" in outline_publishing(asked).text()
    done = publish(asked)
    assert Path(done["outputs"]["export/kohya"]).is_file()
    assert Registry(storage).resolve("noir@latest").version == "v2"
    more = publish(parse_config(PublishConfig, first | {"exports": ["comfyui"]}))
    assert more["outputs"].keys() == {"adapter", "export/kohya", "export/comfyui"}
    assert more["outputs"]["adapter"] == "noir@v1"
    assert more["figures"] == result["figures"]
