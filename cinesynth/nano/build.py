"""`make nano`: train the nano base model end to end from a seed; stop it and run it again to go on.

python -m cinesynth.nano.build --out build/nano [--smoke] [--device cuda] [--install]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan

from cinesynth.errors import CinesynthError
from cinesynth.metrics.networks.lpips import load_lpips
from cinesynth.nano.architecture import NanoParts, nano_parts, save_nano
from cinesynth.nano.domain import DOMAIN_VERSION, HomeWindow, held_out_windows, rendered, sharp, training_windows
from cinesynth.nano.encoders import train_encoders
from cinesynth.nano.recipe import Recipe, full_recipe, smoke_recipe
from cinesynth.nano.transformer import EncodedWindows, encode_windows, train_transformer
from cinesynth.nano.vae import (
    Pixels,
    VaeModel,
    channel_statistics,
    pca_floor,
    reconstruction,
    train_phase,
    train_skeleton,
)
from cinesynth.report.nano import write_nano_page
from cinesynth.storage import Storage
from cinesynth.train.strategy import World
from cinesynth.wan.folder import SHIPPED, write_manifest
from cinesynth.wan.load import save_model

log = logging.getLogger("cinesynth.nano")


class GateError(CinesynthError):
    """The VAE is not better than a PCA of its latent budget, so nothing is trained on its latents."""


class Build:
    """One training of the nano model in a folder. A stage whose result is there is passed over."""

    def __init__(self, recipe: Recipe, out: Path, device: str = "cpu", gate: bool = True) -> None:
        self.recipe, self.out, self.device, self.gate = recipe, out, device, gate
        out.mkdir(parents=True, exist_ok=True)
        identity = json.loads(json.dumps(recipe.identity() | {"domain": DOMAIN_VERSION}))
        record = out / "recipe.json"
        if record.is_file() and json.loads(record.read_text()) != identity:
            raise CinesynthError(f"{out} holds a training by another recipe; give another folder, or remove it")
        self._write(record.name, json.dumps(identity, indent=1))

    def run(self) -> Path:
        """All stages; returns the model's folder."""
        recipe, processes = self.recipe, os.cpu_count() or 1
        train = training_windows(recipe.train_windows, recipe.photographs)
        held_out = held_out_windows(recipe.held_out_windows)
        with self._stage("footage"):
            footage, sharp_footage, held_out_footage, sharp_held_out_footage = (
                rendered(windows, self.out / "footage", processes)
                for windows in (train, sharp(train), held_out, sharp(held_out))
            )
        parts = nano_parts(recipe.seed)
        with self._stage("vae"):
            self._vae(parts, sharp_footage, sharp_held_out_footage)
        with self._stage("encoders"):
            self._encoders(
                parts,
                (footage, [w.caption for w in train]),
                (held_out_footage, [w.caption for w in held_out]),
            )
        base = self._once("base", lambda folder: save_nano(parts, folder))
        with self._stage("encode"):
            encoded, encoded_held_out = self._encoded(base, train, "train"), self._encoded(base, held_out, "val")
        with self._stage("transformer"):
            world = World(device=self.device)
            folder = self.out / "transformer"
            loop = train_transformer(recipe.transformer, str(base), encoded, encoded_held_out, folder, world)
        model = self._once("model", lambda folder: save_model(loop.transformer.cpu(), str(base), folder))
        log.info("page: %s", write_nano_page(self.out, recipe.transformer))
        return model

    def _vae(self, parts: NanoParts, train: Pixels, held_out: Pixels) -> None:
        folder = self._once("vae", lambda folder: self._train_vae(parts, train, held_out, folder))
        parts.vae = AutoencoderKLWan.from_pretrained(folder).eval()
        record = json.loads((self.out / "vae.json").read_text())
        floor, found = record["floor"], record["vae"]
        log.info("VAE: %.2f dB, first frame %.2f, last %.2f", found["psnr"], found["psnr_first"], found["psnr_last"])
        if found["psnr"] <= floor["psnr"]:
            message = f"the VAE reaches {found['psnr']:.2f} dB, a PCA of its latent budget {floor['psnr']:.2f} dB"
            if self.gate:
                raise GateError(f"{message}: change the recipe; nothing is trained on such latents")
            log.warning("%s; going on, as this is a smoke run", message)

    def _train_vae(self, parts: NanoParts, train: Pixels, held_out: Pixels, folder: Path) -> None:
        recipe, sample = self.recipe, held_out[: self.recipe.vae_windows]
        floor = pca_floor(train[:1024], held_out)
        log.info("PCA of the latent budget: %.2f dB on %d held-out windows", floor["psnr"], len(held_out))
        train_skeleton(parts.vae, train, sample, recipe.skeleton, recipe.seed, self.out / "vae-skeleton")
        perceptual = load_lpips("alex")
        for place, phase in enumerate(recipe.phases):
            seed = recipe.seed + 1 + place
            train_phase(parts.vae, train, sample, phase, seed, self.out / phase.name, perceptual)
        mean, std = channel_statistics(parts.vae, train[: recipe.held_out_windows])
        parts.vae.register_to_config(latents_mean=mean, latents_std=std)
        found = reconstruction(VaeModel(parts.vae), held_out)
        self._write("vae.json", json.dumps({"floor": floor, "vae": found}))
        parts.vae.save_pretrained(folder)

    def _encoders(self, parts: NanoParts, train: tuple[Pixels, list[str]], held_out: tuple[Pixels, list[str]]) -> None:
        encoders = (parts.text_encoder, parts.image_encoder, parts.tokenizer, parts.image_processor)
        train_encoders(*encoders, train, held_out, self.recipe.encoders, self.recipe.seed, self.out / "encoders")

    def _encoded(self, base: Path, windows: list[HomeWindow], name: str) -> EncodedWindows:
        def report(done: int, total: int) -> None:
            if done == total or done % 512 == 0:
                log.info("encoded %d of %d %s windows", done, total, name)

        return encode_windows(windows, str(base), self.out / f"encoded-{name}", os.cpu_count() or 1, report)

    def _once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """The folder `name`, made by `make` unless it is there. It appears whole."""
        target, part = self.out / name, self.out / f".tmp-{name}"
        if not target.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            os.rename(part, target)
        return target

    def _write(self, name: str, text: str) -> None:
        """Write a record of the build, whole or not at all."""
        Storage.open(str(self.out)).write_text(name, text)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Log a stage and add up its time over all runs. It is written each minute, as a run may be killed."""
        log.info("--- %s", name)
        record, started, ended = self.out / "seconds.json", time.monotonic(), threading.Event()
        seconds = json.loads(record.read_text()) if record.is_file() else {}
        before = seconds.get(name, 0)

        def write() -> None:
            seconds[name] = round(before + time.monotonic() - started, 1)
            self._write("seconds.json", json.dumps(seconds, indent=1))

        def write_each_minute() -> None:
            while not ended.wait(60):
                write()

        clock = threading.Thread(target=write_each_minute, daemon=True)
        clock.start()
        try:
            yield
        finally:
            ended.set()
            clock.join()
            write()
            log.info("--- %s: %.1f min so far", name, seconds[name] / 60)


def install(model: Path) -> None:
    """Put a trained model where the package ships it."""
    part = SHIPPED.with_name(".tmp-nano")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(model, part)
    write_manifest(part)
    shutil.rmtree(SHIPPED, ignore_errors=True)
    os.rename(part, SHIPPED)


def main(argv: list[str] | None = None) -> None:
    """Command line of `Build`."""
    parser = argparse.ArgumentParser(prog="python -m cinesynth.nano.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder of this training")
    parser.add_argument("--smoke", action="store_true", help="twenty steps of each kind, and no gate")
    parser.add_argument("--device", default="cpu", help="where the transformer is trained")
    parser.add_argument("--install", action="store_true", help="ship the result: replace the package's weights by it")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cinesynth").setLevel(logging.INFO)
    recipe = smoke_recipe() if arguments.smoke else full_recipe()
    try:
        model = Build(recipe, arguments.out, arguments.device, gate=not arguments.smoke).run()
        if arguments.install:
            install(model)
    except CinesynthError as e:
        raise SystemExit(f"error: {e}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from the last checkpoint") from None
    print(f"Model: {model}")


if __name__ == "__main__":
    main()
