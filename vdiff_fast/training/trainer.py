"""The training loop: a pure function of configuration, seed and step, so that a resumed run goes on exactly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vdiff_fast import data, use_backend
from vdiff_fast._files import save_pickle, write_text
from vdiff_fast._version import __version__
from vdiff_fast.data.container import import_av
from vdiff_fast.data.items import known_items
from vdiff_fast.latents import LatentInfo
from vdiff_fast.models.weights import plain_module
from vdiff_fast.pretrained import Pretrained
from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training import config as configuration
from vdiff_fast.training import distributed, draws, nonfinite, sharded
from vdiff_fast.training.build import build_dataset, build_model, schedule_for
from vdiff_fast.training.classes import changed_classes, check_first_item, classes_of
from vdiff_fast.training.ema import Ema
from vdiff_fast.training.generate import write_samples
from vdiff_fast.training.latents import LatentSource, check_same_cache
from vdiff_fast.training.mean_flow import MeanFlowObjective
from vdiff_fast.training.metrics import MetricsLog, Progress, plot_loss, read_metrics
from vdiff_fast.training.objective import Batch, Objective, resolved_precision
from vdiff_fast.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from vdiff_fast.training.resuming import ResumeError, resumable

if TYPE_CHECKING:
    from vdiff_fast.training.config import TrainConfig


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGINT and SIGTERM ask for an orderly end; a second one ends at once."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        requested.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, request)
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """Trains a video diffusion model and leaves a run folder that `resume=True` continues bit for bit on the CPU.

    RUN/ config.yaml, metrics.jsonl, loss.png, samples/, checkpoints/ (see `vdiff_fast.training.checkpoint`).

    >>> Trainer(load_config("recipes/moving_digits.yaml"), Path("runs/digits")).fit()

    Args:
        config: see `vdiff_fast.training.config`; None takes that of the checkpoint resumed.
        run: folder of the run.
        resume: go on from the newest checkpoint, if there is one.
        force: go on although the configuration has changed.
        dataset: used instead of the one the configuration names.
        model: used instead of the one the configuration names; where it is compiled or wrapped it is called as it is,
            and checkpoints hold the names of the module inside.
        show_progress: print the progress line.

    Raises:
        ResumeError: the run holds checkpoints and `resume` is not set, or its configuration was another.
        NonFiniteLossError: from `fit`, see `NonFiniteConfig`.
    """

    def __init__(
        self, config: TrainConfig | None, run: Path | str, *, resume: bool = False, force: bool = False,
        dataset: Dataset | None = None, model: nn.Module | None = None, show_progress: bool = True,
    ) -> None:  # fmt: skip
        self.run = Path(run)
        started, self.config = resumable(self.run, config, resume, force)
        runtime = self.config.runtime
        if runtime.precision == "fp16" and runtime.strategy != "ddp":
            raise configuration.ConfigError("runtime.precision fp16 cannot scale sharded gradients; use bf16 or ddp")
        self.device = distributed.choose_device(runtime.device)
        distributed.start(self.device)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.show_progress = show_progress and self.rank == 0
        self._build_data(dataset)
        self._build_model(model)
        self.step, self.samples = 0, 0
        if started:
            self._restore(force)
        self._prepare_run()

    def _build_data(self, dataset: Dataset | None) -> None:
        config = self.config
        self.dataset = build_dataset(config.data, config.seed) if dataset is None else known_items(dataset)
        self.latents = LatentSource.of(self.dataset)
        self.num_classes: int | None = None
        self.classes: list[str] | None = None
        if config.data.labels:
            self.num_classes, self.classes = classes_of(self.dataset)
        if self.latents is None:
            check_first_item(self.dataset, config)
        self.loader = data.loader(
            self.dataset, config.batch_size, seed=config.seed, rank=self.rank, world_size=self.world_size,
            workers=config.data.workers,
        )  # fmt: skip

    def _build_model(self, model: nn.Module | None) -> None:
        config, runtime = self.config, self.config.runtime
        torch.manual_seed(config.seed)
        if model is None:
            info = None if self.latents is None else self.latents.info
            model = build_model(config, num_classes=self.num_classes, latents=info)
        self.model = plain_module(model).to(self.device)
        # Of mean velocities the objective compiles the model together with its derivative.
        compiled = runtime.compile and not config.mean_flow.share
        self.called: Any = distributed.wrap(model, runtime, self.device, compiled=compiled)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        # What an adapter leaves alone never changes.
        frozen = not (isinstance(self.model, Pretrained) and self.model.has_adapter)
        self.ema = Ema(self.model, config.ema.decay, warmup=config.ema.warmup, frozen=frozen)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=runtime.precision == "fp16")
        objective = MeanFlowObjective if config.mean_flow.share else Objective
        schedule = schedule_for(config)
        self.objective = objective(config, schedule, self.device, self.num_classes, self.latents)
        self.guard = nonfinite.NonFiniteGuard(config.nonfinite.policy, config.nonfinite.limit)

    @property
    def global_batch(self) -> int:
        """Clips per optimizer step, over all ranks and micro-steps."""
        return self.config.batch_size * self.world_size * self.config.optimizer.accumulate

    def fit(self, until: int | None = None) -> None:
        """Train to step `until` (the configured number if left out), then save; SIGINT and SIGTERM save, too."""
        config = self.config
        last = config.steps if until is None else min(until, config.steps)
        progress = Progress(
            config.steps, start=self.step, frames_per_step=self.global_batch * config.data.frames,
            show=self.show_progress,
        )  # fmt: skip
        log = None
        if self.rank == 0:
            log = MetricsLog(self.run, after=self.step, tensorboard=config.log.tensorboard)
        with ExitStack() as stack:
            stack.callback(progress.close)
            if log is not None:
                stack.callback(log.close)
            stopping = stack.enter_context(_stop_requests())
            if config.runtime.backend != "auto":
                stack.enter_context(use_backend(config.runtime.backend))
            if config.runtime.deterministic:
                stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS's products are refused
                torch.use_deterministic_algorithms(True)
            self._loop(last, progress, log, stopping)

    def _loop(self, last: int, progress: Progress, log: MetricsLog | None, stopping: Callable[[], bool]) -> None:
        config = self.config
        batches = iter(self.loader)
        window = _Window()
        saved_at = -1
        stopped = False
        self.called.train()
        while self.step < last and not stopped:
            waited = self.loader.wait_seconds
            loss, norm, stopped = self._train_step(batches, stopping)
            waited = self.loader.wait_seconds - waited
            window.add(loss, norm, waited)
            progress.update(loss, waited)
            if log is not None and (self.step % config.log.every == 0 or self.step == last or stopped):
                log.write(window.row(self.step, self._rate(self.step - 1), self.global_batch * config.data.frames))
                window = _Window()
            if _due(self.step, config.log.plot_every):
                self._plot()
            if _due(self.step, config.sample.every):
                self._sample()
            if _due(self.step, config.checkpoint.every):
                self.save()
                saved_at = self.step
        if saved_at != self.step:
            self.save()
        self._plot()
        if stopped:
            progress.write(f"stopped at step {self.step}; go on with --resume")

    def _rate(self, step: int) -> float:
        return learning_rate(self.config.optimizer, step, self.config.steps)

    def _train_step(self, batches: Iterator[dict[str, Any]], stopping: Callable[[], bool]) -> tuple[float, float, bool]:
        """One optimizer step; (loss, norm of the gradient, whether any rank was asked to stop)."""
        micro_steps = self.config.optimizer.accumulate
        draws.seed_torch(self.config.seed, self.step, self.rank)
        set_learning_rate(self.optimizer, self._rate(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        done: list[tuple[Batch, Tensor]] = []
        for micro in range(micro_steps):
            offset = self.samples + (micro * self.world_size + self.rank) * self.config.batch_size
            batch = self.objective.prepare(next(batches), offset)
            with distributed.accumulating(self.called, more=micro + 1 < micro_steps):
                loss = self.objective.loss(self.objective.predict(self.called, batch), batch)
                self.scaler.scale(loss / micro_steps).backward()
            done.append((batch, loss.detach()))
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        # One transfer per step: all ranks see the same figures and so decide alike.
        seen = torch.stack(
            [torch.stack([loss for _, loss in done]).mean(), norm, torch.full_like(norm, float(stopping()))]
        )
        mean_loss, mean_norm, stops = distributed.mean(seen).tolist()
        self._update(mean_loss, mean_norm, done)
        self.step += 1
        self.samples += self.global_batch
        return mean_loss, mean_norm, stops > 0

    def _clip(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return distributed.full({"norm": norm})["norm"]

    def _update(self, loss: float, norm: float, done: list[tuple[Batch, Tensor]]) -> None:
        """Step the optimizer if the figures are finite; gradients that overflow in fp16 are the scaler's affair."""
        scaling = self.scaler.is_enabled()
        if not nonfinite.is_finite(loss) or not (scaling or nonfinite.is_finite(norm)):
            if self.guard.must_raise():
                self._raise_nonfinite(loss, norm, done)
            if scaling:
                self.scaler.update()
            return
        self.guard.passed()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.step + 1)

    def _raise_nonfinite(self, loss: float, norm: float, done: list[tuple[Batch, Tensor]]) -> None:
        what, value = ("gradient norm", norm) if nonfinite.is_finite(loss) else ("loss", loss)
        broken = next((b for b, loss in done if not bool(torch.isfinite(loss))), None)
        batch = broken or done[-1][0]
        module = nonfinite.first_nonfinite_module(self.model, lambda: self.objective.predict(self.model, batch))
        mine = {"broken": broken is not None, "t": batch.timesteps, "files": batch.files, "module": module}
        reports = distributed.gather(mine)
        culprits = [i for i, report in enumerate(reports) if report["broken"]] or [0]
        dump = self.run / "nan_dump.pt"
        weights = ckpt.weights_of(self.model)
        if self.rank == culprits[0]:
            save_pickle(
                dump,
                {
                    "step": self.step, "loss": loss, "gradient_norm": norm, "module": module, "x0": batch.x0.cpu(),
                    "t": batch.t.cpu(), "y": batch.y, "files": batch.files, "seed": self.config.seed,
                    "sample_offset": int(batch.sample_offset), "config": configuration.to_yaml(self.config),
                    "model": {name: value.cpu() for name, value in weights.items()},
                },
            )  # fmt: skip
        worst = reports[culprits[0]]
        raise nonfinite.NonFiniteLossError(
            what, value, step=self.step, timesteps=worst["t"], files=worst["files"], module=worst["module"],
            advice=nonfinite.advice(resolved_precision(self.config.runtime.precision, self.device)), dump=dump,
        )  # fmt: skip

    def _prepare_run(self) -> None:
        if self.config.sample.every:
            import_av()
        if self.rank == 0:
            self.run.mkdir(parents=True, exist_ok=True)
            write_text(self.run / "config.yaml", configuration.to_yaml(self.config))
        distributed.barrier()

    def _sample(self) -> None:
        with self.ema.applied() as model:
            path = self.run / "samples" / f"step_{self.step:08d}"
            write_samples(model, self.objective, self.config, path, num_classes=self.num_classes, write=self.rank == 0)
        self.called.train()
        distributed.barrier()

    def _plot(self) -> None:
        rows = read_metrics(self.run) if self.rank == 0 else []
        if rows:
            plot_loss(rows, self.run / "loss.png", title=self.run.name)

    def save(self) -> None:
        """Write a checkpoint of this step; every rank must call it."""
        state = {
            "step": self.step, "samples": self.samples, "seed": self.config.seed, "skipped": self.guard.skipped,
            "num_classes": self.num_classes, "classes": self.classes, "data": self.loader.state_dict(),
            "world_size": self.world_size, "version": __version__, "torch": torch.__version__,
        }  # fmt: skip
        if self.latents is not None:
            state["latents"] = self.latents.info.to_dict()
        folder, keep = self.run / "checkpoints", self.config.checkpoint.keep
        config_yaml = configuration.to_yaml(self.config)
        if distributed.is_sharded(self.model):
            tensors = sharded.tensors_of(self.model, self.ema, self.optimizer)
            ckpt.save_sharded(folder, tensors, state, config_yaml, keep=keep)
            return
        saved = ckpt.Checkpoint(
            model=ckpt.weights_of(self.model),
            ema=self.ema.state_dict(),
            optimizer={
                "optimizer": distributed.optimizer_state(self.model, self.optimizer),
                "scaler": self.scaler.state_dict(),
            },
            state=state,
            config_yaml=config_yaml,
        )
        if self.rank == 0:
            ckpt.save_checkpoint(folder, saved, keep=keep)
            self._export()
        distributed.barrier()

    def _export(self) -> None:
        """The averaged weights in the files of diffusers, of a model that came from there and is not sharded."""
        if isinstance(self.model, Pretrained) and self.config.runtime.strategy == "ddp":
            with self.ema.applied():
                self.model.export(self.run / "diffusers")

    def _restore(self, force: bool) -> None:
        path = ckpt.newest_whole(self.run / "checkpoints")
        assert path is not None
        state = ckpt.state_of(path)
        if self.latents is not None and "latents" in state:
            check_same_cache(LatentInfo.from_dict(state["latents"]), self.latents.info)
        changed = changed_classes(state.get("classes"), self.classes)
        if changed and not force:
            raise ResumeError(
                f"{self.run} was trained with other classes: {changed}; give the folders their names again, or use "
                "--force where only names have changed and every number means what it did"
            )
        ckpt.restore(path, self.model, self.ema, self.optimizer, self.scaler)
        self.step, self.samples = int(state["step"]), int(state["samples"])
        self.guard.skipped = int(state["skipped"])
        try:
            self.loader.load_state_dict(state["data"])
        except data.SamplerStateError:
            if not force:
                raise
            self.loader.sampler.batch = self.samples // self.loader.sampler.global_batch


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Window:
    """Means over the steps since the last row of metrics."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.waited, self.start = 0.0, time.perf_counter()

    def add(self, loss: float, norm: float, waited: float) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.waited += waited

    def row(self, step: int, rate: float, frames_per_step: int) -> dict[str, Any]:
        elapsed, count = max(1e-9, time.perf_counter() - self.start), len(self.losses)
        return {
            "step": step,
            "loss": sum(self.losses) / count,
            "gradient_norm": sum(self.norms) / count,
            "learning_rate": rate,
            "steps_per_second": count / elapsed,
            "frames_per_second": count * frames_per_step / elapsed,
            "data_wait": self.waited / elapsed,
        }
