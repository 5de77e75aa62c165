"""DeepSpeed's ZeRO: stage 2 shards gradients and optimiser over all workers, stage 3 the base and the adapter too.

DeepSpeed averages gradients over the workers and the loop wants their sum, so a loss is multiplied by their number. The
engine computes in the dtypes that the model has: neither its fp16 nor its bf16 mode is on, which would cast the adapter
and the weights that the model keeps in fp32.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import WanTransformer3DModel

from cinesynth.train.strategy import World, make_optimizer
from cinesynth.wan.parameters import put

if TYPE_CHECKING:
    from cinesynth.config import OptimizerSettings
    from cinesynth.wan.stream import StoredWeights

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero:
    """A frozen base with an adapter under DeepSpeed.

    Args:
        world: this worker among all; torch's process group is up.
        weights: of a transformer that was made without values; they are read block by block, and with stage 3 each
            block is sharded before the next is read.
        stage: 2 or 3.
    """

    in_step = True
    parameters: dict[str, torch.nn.Parameter]
    model: torch.nn.Module

    def __init__(self, world: World, weights: StoredWeights | None = None, stage: Literal[2, 3] = 3) -> None:
        self.world, self.weights, self.stage = world, weights, stage

    def prepare(self, transformer: WanTransformer3DModel, settings: OptimizerSettings) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # not used: the loop counts the windows
            "managed_gradient_accumulation": False,  # every `step` ends an accumulation
            "gradient_clipping": settings.max_grad_norm,
            "zero_optimization": {"stage": self.stage, "overlap_comm": False, "reduce_scatter": True},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }
        # Else it compiles a reduction through shared memory for groups on CPUs: a minute, and a compiler is needed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_init_required=False)
        self._place(transformer, config)
        named = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(named.values(), settings)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # stage 3 makes its moments by a step of zero gradients
        self._engine, *_ = deepspeed.initialize(model=transformer, optimizer=optimizer, config=config)
        self.model = self._engine  # counts the passes of a step: a direct call of the transformer sums wrong gradients
        self.parameters = named
        for moments in self._inner.state.values():
            moments["step"].zero_()

    def _place(self, transformer: WanTransformer3DModel, config: dict[str, Any]) -> None:
        from deepspeed import zero

        for part in (*transformer.blocks, transformer):
            if self.weights is not None:
                self._fill(part, transformer)
            if self.stage == 3:
                zero.Init(module=part, config_dict_or_path=config)
        if self.stage == 2:
            transformer.to(self.world.device)
        for buffer in transformer.buffers():  # of the positions; stage 3 moves parameters only
            buffer.data = buffer.data.to(self.world.device)

    def _fill(self, part: torch.nn.Module, transformer: WanTransformer3DModel) -> None:
        assert self.weights is not None
        inside = set(part.parameters())
        for name, parameter in list(transformer.named_parameters()):
            if parameter.is_meta and parameter in inside:
                put(transformer, name, self.weights.read(name).to(self.world.device))

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """PyTorch's optimiser over this worker's shards."""
        inner: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return inner

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.world.size)

    def step(self, rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def state(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        steps = [moments["step"] for moments in self._inner.state.values() if "step" in moments]
        state = {}
        for name, parameter in self.parameters.items():
            state[f"parameter/{name}"] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
            if steps and steps[0] > 0:
                for moment in _MOMENTS:
                    whole = safe_get_full_optimizer_state(parameter, moment)
                    state[f"{moment}/{name}"] = whole.detach().cpu().clone()
                state[f"step/{name}"] = steps[0].detach().cpu().clone()
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        steps = [value for name, value in state.items() if name.startswith("step/")]
        if steps:
            self._make_moments(steps[0])
        from deepspeed import zero

        with zero.GatheredParameters(list(self.parameters.values()), modifier_rank=0, enabled=self.stage == 3):
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"parameter/{name}"])
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, state[f"parameter/{name}"].to(self.world.device))
            for moment in _MOMENTS if steps else ():
                safe_set_full_optimizer_state(parameter, state[f"{moment}/{name}"].to(self.world.device), moment)

    def _make_moments(self, step: torch.Tensor) -> None:
        """Give each shard moments to set, as its first step would."""
        zero = self._engine.optimizer
        shards = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for shard in shards:
            self._inner.state[shard] = {"step": step.clone(), **{m: torch.zeros_like(shard) for m in _MOMENTS}}
        if self.stage == 2:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for trained, shard in zip(zero.bit16_groups, shards, strict=True):
                lazy_init_hp_params_optimizer_state(trained, shard, self._inner.state)
