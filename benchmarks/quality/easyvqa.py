"""Forgetting on easy-VQA (questions about coloured shapes): a small LLaVA forgets one shape or one colour and keeps the rest.

    python -m benchmarks.quality.easyvqa --data FOLDER [--concepts triangle red] [--seeds 1] [--size small|full] [--out FOLDER]

FOLDER holds easyvqa_train.npz and easyvqa_test.npz; without them this says so and exits with 0. Trained models and finished
runs stay in --out, so that an interrupted benchmark goes on where it stopped. One model is trained on everything, and one for
each concept on the images that do not show it.

forget: which shape (or colour) it is, about images of the concept. retain: the same questions about other images. neutral: the
other kind of question (colours, where a shape is forgotten), about all images, and yes or no questions on the other kind.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from razor_fast.data import Sample
from razor_fast.data.conversations import Question
from razor_fast.data.question_parts import SIDES, QuestionParts
from razor_fast.demo.vlm import demo_config
from razor_fast.demo.vlm_training import MEAN, STD, Recipe, build_model, build_processor, train, train_tower
from razor_fast.families.loading import quiet
from razor_fast.families.vlm import VlmTask
from razor_fast.methods import unlearn

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("green", "red", "gray", "teal", "black", "yellow", "brown", "blue")
# steps of training (the tower alone, the whole), questions of a side in (train, validation, test)
SIZES = {"small": (600, 400, (600, 120, 300)), "full": (4000, 2500, (4000, 240, 2000))}


def read(folder, name):
    found = np.load(folder / f"easyvqa_{name}.npz", allow_pickle=False)
    asked = [[] for _ in found["images"]]
    for question, reply, image in zip(found["questions"], found["answers"], found["image_index"]):
        asked[image].append((str(question), str(found["answer_names"][reply])))
    return found["images"], asked


def shown(asked, kind):
    """The shape or the colour of an image, from the answers to its questions; None where none tells."""
    return next((reply for _, reply in asked if reply in kind), None)


def is_about(question, reply, kind):
    return reply in kind or (reply in ("yes", "no") and any(word in question for word in kind))


def parts_of(concept, folder, seed, most):
    """QuestionParts: train and validation from the train file, four to one, test from the test file."""
    own = SHAPES if concept in SHAPES else COLOURS
    draw, sets = np.random.default_rng(seed), {f"{s}.{p}": [] for s in SIDES for p in ("train", "validation", "test")}
    for file in ("train", "test"):
        images, asked = read(folder, file)
        held = draw.permutation(len(images))[: len(images) // 5]
        validation = np.zeros(len(images), bool)
        validation[held] = file == "train"
        for number, (pixels, questions) in enumerate(zip(images, asked)):
            part = "validation" if validation[number] else file
            what = shown(questions, own)
            sample = Sample(pixels, key=f"{file}/{number}")
            for question, reply in dict(questions).items():
                if reply in own and what is not None:
                    side = "forget" if what == concept else "retain"
                elif not is_about(question, reply, own):
                    side = "neutral"
                else:
                    continue  # yes or no about the concept's kind follows from what is forgotten
                sets[f"{side}.{part}"].append(Question(sample, question, reply, f"{sample.key}/{question}"))
    limits = dict(zip(("train", "validation", "test"), most))
    for name, questions in sets.items():
        chosen = draw.permutation(len(questions))[: limits[name.split(".")[1]]]
        sets[name] = [questions[i] for i in chosen]
    return QuestionParts(sets)


class Draw:
    """Batches of images with three of their questions each."""

    def __init__(self, images, asked, recipe):
        self.pixels = ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255) - MEAN) / STD
        self.asked, self.recipe = asked, recipe
        seen = [(shown(questions, SHAPES), shown(questions, COLOURS)) for questions in asked]
        self.known = [i for i, pair in enumerate(seen) if None not in pair]
        self.labels = [SHAPES.index(s) * len(COLOURS) + COLOURS.index(c) if s and c else -1 for s, c in seen]

    def labelled(self, generator):
        """Images, and for each a number for its shape and colour."""
        drawn = torch.randint(len(self.known), (self.recipe.batch_size,), generator=generator).tolist()
        rows = [self.known[i] for i in drawn]
        return self.pixels[rows], torch.tensor([self.labels[row] for row in rows])

    def __call__(self, generator):
        rows = torch.randint(len(self.asked), (self.recipe.batch_size,), generator=generator).tolist()
        talks = []
        for row in rows:
            order = torch.randperm(len(self.asked[row]), generator=generator)[:3].tolist()
            talks.append([self.asked[row][i] for i in order])
        return self.pixels[rows], talks


def trained(out, recipe, folder, without, tell):
    """The folder of a model trained on the train file, without images of a concept where one is given."""
    target = out / f"llava-{without or 'everything'}-{recipe.tower_steps}-{recipe.steps}-{recipe.seed}"
    if target.is_dir():
        return target
    images, asked = read(folder, "train")
    kind = SHAPES if without in SHAPES else COLOURS
    rows = [i for i, questions in enumerate(asked) if questions and shown(questions, kind) != without] if without else [
        i for i, questions in enumerate(asked) if questions
    ]  # fmt: skip
    every = sorted({text for questions in asked for pair in questions for text in pair})
    processor = build_processor(recipe, every)
    model = build_model(recipe, processor)
    draw = Draw(images[rows], [asked[i] for i in rows], recipe)
    train_tower(model, draw.labelled, len(SHAPES) * len(COLOURS), recipe, tell)
    train(model, processor, draw, recipe, tell)
    part = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    with quiet():
        model.save_pretrained(part)
        processor.save_pretrained(part)
    part.rename(target)
    return target


def easyvqa_task(data, out, concept, seed, size, tell):
    """The VlmTask of a request, its models trained or taken from the folder `out`."""
    tower_steps, steps, most = SIZES[size]
    recipe = Recipe(image_size=64, patch_size=16, tower_steps=tower_steps, steps=steps, seed=seed)
    folder = trained(out, recipe, data, None, tell)
    other = trained(out, recipe, data, concept, tell)
    return VlmTask.from_pretrained(
        folder, parts_of(concept, data, seed, most), concept, device="cpu", reference=other, match="exact",
        max_new_tokens=4, batch_size=24, gradient_batches=4, evaluation_batch_size=64, seed=seed,
    )  # fmt: skip


def tell(step, total, loss):
    if step % 100 == 0 or step == total:
        print(f"  {step}/{total} loss {loss.item():.3f}", file=sys.stderr, flush=True)


def run(concept, seed, given):
    """Test metrics of the original, the unlearned and the retrained model, as kept in --out."""
    kept = given.out / f"{concept}-{given.size}-{seed}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    task = easyvqa_task(given.data, given.out, concept, seed, given.size, tell)
    run_folder = given.out / f"run-{concept}-{given.size}-{seed}"
    outcome = unlearn(task, demo_config(seed), run_directory=run_folder)
    found = {
        "outcome": outcome.outcome,
        "seconds": outcome.totals["seconds"],
        "units": list(outcome.edit.units) if outcome.edit is not None else [],
        "original": outcome.metrics["test"]["before"],
        "unlearned": outcome.metrics["test"]["after"],
        "retrained": task.on(task.reference).evaluate("test"),
    }
    kept.write_text(json.dumps(found, indent=1))
    shutil.rmtree(run_folder)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", default=["triangle", "red"], choices=[*SHAPES, *COLOURS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/easyvqa"))
    given = parser.parse_args()
    missing = [n for n in ("easyvqa_train.npz", "easyvqa_test.npz") if not (given.data / n).is_file()]
    if missing:
        print(f"not run: {given.data} has no {missing[0]}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(given.seeds):
        for concept in given.concepts:
            found = run(concept, seed, given)
            for model in ("original", "unlearned", "retrained"):
                named = {k: v for k, v in found[model].items() if k.endswith("accuracy")}
                rows.append({"concept": concept, "seed": seed, "model": model, "outcome": found["outcome"], **named})
                shares = ", ".join(f"{k} {v:.1%}" for k, v in named.items())
                print(f"{concept}, seed {seed}, {model}: {shares}", flush=True)
    with open(given.out / f"easyvqa-{given.size}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
