"""Stable Diffusion and its kin: the losses, prompts and metrics of one request to forget an object or a style.

A DiffusionTask is built from a loaded pipeline, Prompts and classifiers of images. It implements families/task.py for the
loop. Gradients come from train prompts and images, decisions from images of validation prompts, and test prompts and
seeds are only ever reported.
"""

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch

from .. import losses
from ..errors import ConceptError, ConfigError, NonFiniteError
from ..evaluation.canvas import canvas_metrics
from ..memory import memory_advice
from ..threads import fixed
from .diffusion_audit import image_log_probs, outcomes, relearning_losses
from .diffusion_data import frozen_predictions, pixels, retained, training_latents
from .diffusion_erasing import denoised_place, erasing_losses, erasing_targets, noised_places
from .diffusion_generation import generate
from .diffusion_model import adapter_for
from .diffusion_noise import noise_process, stratified
from .diffusion_report import report_sections, take_snapshot
from .diffusion_text import TextCache, pooled_features, unknown_everywhere
from .diffusion_training import OBJECTIVES, training_losses

__all__ = ["DiffusionTask", "Drawing", "FULL", "QUICK"]

SIDES = ("forget", "retain", "mismatch")
SEEDS = {"train": 10_000_000, "validation": 20_000_000, "test": 30_000_000}  # of images: no two parts share one


@dataclass(frozen=True)
class Drawing:
    """How many images a part is judged on, and how they are drawn. size: side in pixels; None: the pipeline's own."""

    forget_images: int = 16
    retain_images: int = 48
    steps: int = 10
    guidance: float = 7.5
    size: int | None = None
    batch_size: int = 8


QUICK = {"validation": Drawing(16, 48, 10), "test": Drawing(50, 150, 20)}
FULL = {"validation": Drawing(32, 96, 20), "test": Drawing(200, 600, 50)}


class DiffusionTask:
    """Forget an object or a style in a text-to-image pipeline.

    pipeline: a loaded DiffusionPipeline of a supported kind (diffusion_model.py). prompts: diffusion_prompts.Prompts.
    classifiers: {"object" | "style": image_classifier.ImageClassifier} of every domain the prompts name.
    images: data.Parts or {"forget" | "retain": SampleSet}: captioned images to train on; None: the pipeline draws its own,
    `train_images` of each side, from train prompts, before it is edited; `keep`: a folder where these are kept, so that an
    interrupted start goes on.
    align_weight, noise_weight: of the two forget losses, text-encoder alignment and noise prediction; zero leaves one out.
    drawing: {"validation" | "test": Drawing}. drift_samples: places at which drift from the frozen model is measured.
    batch_size: of a micro-batch; gradient_batches: micro-batches of each side per round. autocast: "bf16" or "fp16" computes
    in mixed precision. gradient_checkpointing: of the denoiser. reference: a pipeline that never saw the concept.
    quality: image_quality.ImageQuality, measured on the retained test images; its FID needs `images`.

    Latents, text embeddings and the frozen model's predictions are cached here, so build the task before the model is edited;
    no second copy of the weights is kept. Everything is put into evaluation mode, and the VAE is frozen.
    Raises ModelError, ConfigError, ConceptError, DataError, NonFiniteError before anything is changed.
    """

    family = "diffusion"
    forget_metric = "forget_accuracy"
    forget_signal = "forget_margin"

    def __init__(
        self,
        pipeline,
        prompts,
        *,
        classifiers,
        images=None,
        train_images=(16, 48),
        keep=None,
        align_weight=1.0,
        noise_weight=1.0,
        drawing=None,
        drift_samples=32,
        batch_size=4,
        gradient_batches=4,
        autocast=None,
        gradient_checkpointing=False,
        reference=None,
        quality=None,
        seed=0,
    ):
        if min(align_weight, noise_weight) < 0 or not align_weight + noise_weight:
            raise ConfigError(
                f"align_weight {align_weight}, noise_weight {noise_weight}: expected two numbers, not both zero"
            )
        if min(batch_size, gradient_batches, drift_samples, *train_images) < 1:
            raise ConfigError("batch_size, gradient_batches, drift_samples and train_images are numbers of at least 1")
        if autocast not in (None, "bf16", "fp16"):
            raise ConfigError(f"autocast is {autocast!r}; expected 'bf16', 'fp16' or None")
        self.prompts, self.concept, self.seed = prompts, prompts.concept, seed
        self.drawing = {**QUICK, **(drawing or {})}
        self.batch_size, self.gradient_batches, self.autocast = batch_size, gradient_batches, autocast
        self.align_weight, self.noise_weight = align_weight, noise_weight
        self.default_tolerances = {}
        self.reference, self.quality, self.real = reference, quality, None
        self.classifiers = self._check_classifiers(classifiers)
        self.retain_metrics = ("in_domain_accuracy",)
        if prompts.other in self.classifiers:
            self.retain_metrics += ("cross_domain_accuracy",)
        self._use(pipeline)
        if unknown_everywhere(self.adapter, self.concept):
            raise ConceptError(
                f"no tokenizer of the pipeline knows a token of {self.concept!r}, so no prompt can ask for it; correct the "
                "spelling, or name it as captions did when the model was trained"
            )
        for name in ("vae", "safety_checker", "image_encoder"):
            if hasattr(self.model, name):
                getattr(self.model, name).requires_grad_(False)
        if gradient_checkpointing:
            self.adapter.denoising_module.enable_gradient_checkpointing()
        self._freeze(images, train_images, keep, drift_samples)

    @classmethod
    def from_pretrained(cls, folder, prompts, *, precision="fp32", device="auto", **options):
        """The task of a local pipeline folder, as save_pretrained wrote it. options: as of the class.

        Raises ModelError for a folder that is no pipeline or lacks a part; see diffusion_loading.py.
        """
        from .diffusion_loading import load_pipeline

        return cls(load_pipeline(folder, precision=precision, device=device), prompts, **options)

    def _use(self, pipeline):
        self.pipeline, self.adapter = pipeline, adapter_for(pipeline)
        self.model = self.adapter.model.eval()
        self.texts = TextCache(self.adapter)

    def _check_classifiers(self, classifiers):
        domains = [d for d, names in self.prompts.classes.items() if names]
        missing = [d for d in domains if d not in classifiers]
        if missing:
            raise ConfigError(f"there is no classifier of {missing[0]}s; give one, or images to train it on")
        for domain in domains:
            classifiers[domain].index(self.prompts.classes[domain])
        return {d: classifiers[d] for d in domains}

    @fixed
    def _freeze(self, images, train_images, keep, drift_samples):
        seeds = SEEDS["train"] + 1_000_000 * self.seed
        if self.quality is not None and images is not None:
            size = self.drawing["test"].size or self.adapter.default_size
            self.real = torch.stack([pixels(sample, size) for sample in retained(images)])
        self.latents, self.captions = training_latents(
            self.adapter, self.texts, self.prompts, images, train_images, self.drawing["validation"], seeds, keep
        )
        side = self.latents["retain"].shape[-2:]
        patch = getattr(self.adapter.denoising_module.config, "patch_size", None) or 2
        self.process = noise_process(self.pipeline.scheduler, side[0] * side[1] // max(patch, 2) ** 2)
        self.guidance = self.drawing["validation"].guidance
        self.drift = frozen_predictions(self, drift_samples)
        self._directions = self._concept_directions() if self.align_weight else []

    def _concept_directions(self):
        """For each encoder, [P, E] unit rows: what of a forget prompt's frozen feature is due to the concept.

        It is the prompt's feature less the mean feature of the same prompt with other classes in the concept's place.
        """
        prompts = [p.text for p in self.prompts.forget["train"]]
        with torch.no_grad():
            own = pooled_features(self.adapter, prompts)
            others = [pooled_features(self.adapter, names) for names in self.prompts.anchors]
        return [
            torch.nn.functional.normalize(features - torch.stack([o[e].mean(dim=0) for o in others]), dim=-1)
            for e, features in enumerate(own)
        ]

    # -- what the loop asks for

    def losses(self, side, round_index, seed):
        """See Task.losses. forget: align_weight x alignment of forget prompts with the concept's direction in the frozen text
        features + noise_weight x prediction loss on forget images. retain: prediction loss on retain images. mismatch: squared
        drift of the guided prediction from the frozen model's."""
        draw = (seed + self.seed) * 100_003 + 3 * round_index + SIDES.index(side)
        generator = torch.Generator().manual_seed(draw)
        if side == "mismatch":
            yield from self._drift_losses(generator)
            return
        weight = 1.0
        if side == "forget":
            # A loss that reaches nothing trainable is left out; where both do, the loop is to say so.
            if self.align_weight and (self.texts.trainable() or not self.noise_weight):
                yield self._said(self.align_weight * self._alignment(), side)
            weight = self.noise_weight
        if not weight:
            return
        latents, captions = self.latents[side], self.captions[side]
        order = torch.randperm(len(latents), generator=generator).tolist()
        wanted = min(self.batch_size * self.gradient_batches, max(len(latents), self.batch_size))
        rows = [order[i % len(order)] for i in range(wanted)]
        places = stratified(wanted, generator)
        noise = torch.randn(wanted, *latents.shape[1:], generator=generator)
        for start in range(0, wanted, self.batch_size):
            chunk = rows[start : start + self.batch_size]
            clean = latents[chunk]
            here = slice(start, start + len(chunk))
            timesteps, noisy, target = self.process.draw(clean, noise[here].to(clean), places[here])
            with self._computing(side):
                found = self.adapter.predict(noisy, timesteps, self.texts([captions[r] for r in chunk]))
                loss = losses.prediction_loss(found, target)
            yield self._said(weight * loss * (len(chunk) / wanted), side)

    def training_losses(self, objective, epoch, seed):
        """See families.task.Trains; the losses stand in diffusion_training.py."""
        return training_losses(self, objective, epoch, seed)

    def training_batches(self, objective):
        return -(-len(self.latents[OBJECTIVES[objective]]) // self.batch_size)

    # -- what ESD asks for, see diffusion_erasing.py

    def denoised_place(self, seed, number, **options):
        return denoised_place(self, seed, number, **options)

    def noised_places(self, count, seed, first):
        return noised_places(self, count, seed, first)

    def erasing_targets(self, places, **options):
        return erasing_targets(self, places, **options)

    def erasing_losses(self, places):
        return erasing_losses(self, places)

    def _alignment(self):
        with self._computing("forget"):
            found = pooled_features(self.adapter, [p.text for p in self.prompts.forget["train"]])
            each = [losses.cosine_embedding_loss(f, d) for f, d in zip(found, self._directions)]
        return sum(each) / len(each)

    def _drift_losses(self, generator):
        total = len(self.drift.prompts)
        wanted = min(total, self.batch_size * self.gradient_batches)
        rows = torch.randperm(total, generator=generator)[:wanted].tolist()
        for start in range(0, wanted, self.batch_size):
            chunk = rows[start : start + self.batch_size]
            with self._computing("mismatch"):
                found = self.guided(chunk)
                loss = losses.prediction_loss(found, self.drift.predictions[chunk].to(found.device))
            yield self._said(loss * (len(chunk) / wanted), "mismatch")

    def guided(self, rows):
        """The guided prediction at rows of the drift's places: [len(rows), C, h, w]."""
        drift = self.drift
        texts = self.texts([drift.prompts[r] for r in rows])
        return self.adapter.guided(drift.noisy[rows], drift.timesteps[rows], texts, self.texts.empty(), self.guidance)

    @contextmanager
    def _computing(self, side):
        lower = "task.batch_size, or turn on task.gradient_checkpointing, or use bf16 weights"
        with memory_advice(f"computing the {side} loss", lower), self._autocast():
            yield

    def _autocast(self):
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.adapter.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.autocast])

    def _said(self, loss, side):
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the {side} loss is {loss.item()}: the {self.adapter.kind} overflows in "
                f"{self.autocast or str(self.adapter.dtype).removeprefix('torch.')}; use bf16 or fp32 (model.precision, "
                "task.autocast)"
            )
        return loss

    @fixed
    def evaluate(self, part):
        """UA, IRA and CRA of images drawn for "validation" or "test"; see evaluation/canvas.py and docs/metrics.md."""
        return self.judge(part)[0]

    def judge(self, part):
        """(CanvasMetrics, images, prompts) of a part: forget images first."""
        drawn, prompts = self.draw(part)
        drawing = self.drawing[part]
        forget, retain = drawn.split([drawing.forget_images, drawing.retain_images])
        kept = prompts[drawing.forget_images :]
        own, other = self.classifiers[self.prompts.domain], self.classifiers.get(self.prompts.other)
        cross = (None, None)
        if other is not None:
            cross = other.scores(retain), other.index([p.of(self.prompts.other) for p in kept])
        found = canvas_metrics(
            own.scores(forget),
            own.index([self.concept]).item(),
            own.scores(retain),
            own.index([p.of(self.prompts.domain) for p in kept]),
            *cross,
        )
        if self.quality is not None and part == "test":
            found.update(self.quality(retain, [p.text for p in kept], self.real))
        return found, drawn, prompts

    def draw(self, part):
        """(images [N, 3, H, W] in [0, 1], Prompts drawn) of a part: forget images, then retain images. Same seeds always."""
        if part not in ("validation", "test"):
            raise ConfigError(f"part is {part!r}; expected 'validation' or 'test'")
        drawing = self.drawing[part]
        prompts = self.prompts.deal("forget", part, drawing.forget_images)
        prompts += self.prompts.deal("retain", part, drawing.retain_images)
        first = SEEDS[part] + 1_000_000 * self.seed
        with self._autocast():
            images = generate(
                self.adapter,
                self.texts,
                [p.text for p in prompts],
                [first + i for i in range(len(prompts))],
                steps=drawing.steps,
                guidance=drawing.guidance,
                size=drawing.size,
                batch_size=drawing.batch_size,
            )
        return images, prompts

    # -- what an audit asks for, see task.Audited and diffusion_audit.py

    #: see task.Audited: images are drawn from prompts of the test part, which neither gradients nor the search saw
    audited_sets = {"unseen": [("test", "forget"), ("test", "retain")]}

    @property
    def forget_samples(self):
        return len(self.latents["forget"])

    @property
    def prediction_classes(self):
        return list(self.classifiers[self.prompts.domain].classes)

    @fixed
    def outcomes(self, part):
        """See task.Audited: what each image drawn is called."""
        return outcomes(self, part)

    @fixed
    def class_log_probs(self, part, side):
        """See task.Audited: of the classifier of the concept's domain, on the images drawn."""
        return image_log_probs(self, part, side)

    def relearning_losses(self, count, step, seed):
        """See task.Audited: prediction losses on `count` forget images."""
        return relearning_losses(self, count, step, seed)

    def kept_texts(self):
        """See task.Audited: the retain prompts."""
        return [prompt.text for prompt in self.prompts.retain["train"]]

    def describe(self):
        return {
            "family": self.family,
            "concept": self.concept,
            "model": self.adapter.kind,
            "request": self.prompts.describe(),
            "prediction": self.process.prediction,
            "align_weight": self.align_weight,
            "noise_weight": self.noise_weight,
            "train_images": {side: len(latents) for side, latents in self.latents.items()},
            "drift_samples": len(self.drift.prompts),
            "drawing": {part: asdict(drawing) for part, drawing in self.drawing.items()},
            "batch_size": self.batch_size,
            "gradient_batches": self.gradient_batches,
            "autocast": self.autocast,
            "seed": self.seed,
        }

    def on(self, pipeline):
        """This task with another pipeline of the same kind in the original's place: prompts, seeds and classifiers stay."""
        other = copy.copy(self)
        other._use(pipeline)
        return other

    def snapshot(self):
        """What a report shows of the model as it is now, on test; see diffusion_report.py."""
        return take_snapshot(self)

    def report(self, snapshots):
        """Report sections from snapshots by column name, the reference's column added; see diffusion_report.py."""
        if self.reference is not None:
            snapshots = snapshots | {"retrained": self.on(self.reference).snapshot()}
        return report_sections(self, snapshots)
