"""What a run on a vision-language model keeps in memory: gradient checkpointing, frozen parts, estimate and measurement."""

import copy
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

transformers = pytest.importorskip("transformers")

import vlms  # noqa: E402

from razor_fast.errors import ModelError  # noqa: E402
from razor_fast.families.vlm import VlmTask  # noqa: E402
from razor_fast.families.vlm_checkpointing import Checkpointing  # noqa: E402
from razor_fast.families.vlm_memory import estimate_memory  # noqa: E402

SIDES = ("forget", "retain", "mismatch")
EVERYTHING = ("vision_tower", "projector", "language_model")


def make_task(kind="llava", model=None, **options):
    model = copy.deepcopy(vlms.built(kind)[0]) if model is None else model
    quick = dict(batch_size=4, gradient_batches=1, max_new_tokens=4, evaluation_batch_size=5)
    return VlmTask(model, vlms.built(kind)[1], vlms.parts(), "red", **(quick | options))


class Live(TorchDispatchMode):
    """Bytes of the storages made inside the context: `peak`, the most that were alive at once."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and tensor.untyped_storage() not in self.known:
                self._enter(tensor.untyped_storage())
        return out

    def _enter(self, storage):
        size = storage.nbytes()
        self.known[storage] = size
        weakref.finalize(storage, self._leave, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _leave(self, size):
        self.now -= size


def gradients(task, side):
    for parameter in task.model.parameters():
        parameter.grad = None
    for loss in task.losses(side, 0, 0):
        loss.backward()
    return {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


def measured(task, side):
    """The most bytes that one loss and its backward pass took, and those of the gradients left."""
    list(task.losses(side, 0, 0))  # images are prepared and kept
    for parameter in task.model.parameters():
        parameter.grad = None
    with Live() as live:
        for loss in task.losses(side, 0, 0):
            loss.backward()
            del loss
    return live.peak, sum(p.grad.nbytes for p in task.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("editable", [("vision_tower",), EVERYTHING, ("language_model",)])
@pytest.mark.parametrize("kind", vlms.KINDS)
def test_checkpointing_changes_no_gradient(kind, editable):
    plain, checkpointed = (make_task(kind, editable=editable, gradient_checkpointing=on) for on in (False, True))
    ran = []
    for name in ("model.vision_tower.encoder.layers.0.mlp", "model.language_model.layers.1.mlp"):
        checkpointed.model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    for side in SIDES:
        wanted, found = gradients(plain, side), gradients(checkpointed, side)
        assert wanted and found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    language = [name for name in ran if "language" in name]
    # forget (answers), retain and mismatch, each forwards and once more in the backward pass
    assert len(language) == 6 and len(ran) > (10 if "vision_tower" in editable else 6)
    assert plain.evaluate("test") == checkpointed.evaluate("test")


def test_checkpointing_leaves_dropout_off_and_generation_its_cache():
    model = copy.deepcopy(vlms.built()[0])
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    task = make_task(model=model, gradient_checkpointing=True)
    first, second = (gradients(task, "retain") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lengths = []
    layer = task.model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _m, given: lengths.append(given[0].shape[1]))
    answers = task.adapter.generate(task.parts["retain.test"][:2], max_new_tokens=4)
    hook.remove()
    assert len(lengths) > 1 and set(lengths[1:]) == {1}  # one token at a time after the prompt
    task.adapter.checkpointing = None
    assert answers == task.adapter.generate(task.parts["retain.test"][:2], max_new_tokens=4)
    assert not any(module.training for module in task.model.modules())


def test_checkpointing_takes_less_and_the_estimate_knows():
    plain, checkpointed = (make_task(batch_size=8, gradient_checkpointing=on) for on in (False, True))
    estimates = [estimate_memory(task).activations for task in (plain, checkpointed)]
    peaks = [max(peak - left for peak, left in (measured(task, s) for s in SIDES)) for task in (plain, checkpointed)]
    assert peaks[1] < 0.75 * peaks[0]
    for estimate, peak in zip(estimates, peaks):
        assert 0.6 * peak < estimate < peak  # kernels' own buffers are not in it
    assert not any(p.grad is not None for p in make_task(gradient_checkpointing=True).model.parameters())


def test_the_estimate_takes_the_dearest_loss():
    """Alignment comes first and never runs the language model; the answers after it take more."""
    both, alone = make_task(), make_task(answer_weight=0)
    for task in (both, alone):
        task.losses = lambda side, *_, task=task, own=task.losses: own("forget", *_)
    assert estimate_memory(both).activations > 2 * estimate_memory(alone).activations


@pytest.mark.parametrize("side", SIDES)
def test_a_frozen_language_model_saves_its_gradients(side):
    tower, everything = make_task(), make_task(editable=EVERYTHING)
    (peak, left), (peak_of_all, left_of_all) = measured(tower, side), measured(everything, side)
    language = [*everything.model.model.language_model.parameters(), everything.model.lm_head.weight]
    assert left_of_all - left >= sum(p.nbytes for p in language if p.grad is not None) > left
    # A little less than all of it: the peak comes before the last gradients are formed.
    assert peak_of_all - peak >= 0.9 * (left_of_all - left)


def test_models_without_checkpointing_are_refused():
    model = copy.deepcopy(vlms.built()[0])
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="no gradient checkpointing.*set task.gradient_checkpointing to false"):
        make_task(model=model, gradient_checkpointing=True)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ModelError, match="layers of a Linear"):
        Checkpointing(torch.nn.Linear(2, 2))
