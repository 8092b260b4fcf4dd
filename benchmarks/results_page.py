"""docs/results.md, made from the files in benchmarks/results: no number on that page was typed.

    python -m benchmarks.results_page

demo_clip.csv is written by `python -m benchmarks.quality.demo_clip --out ...`, and */segment_stats.csv by
`python -m benchmarks.run --op segment_stats --out ...`. tests/test_results_page.py compares the page with the files.
"""

import csv
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
SHARES = {"forget_accuracy": "forget accuracy", "retain_accuracy": "retain accuracy",
          "retrieval_stability": "retrieval stability"}  # fmt: skip


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def demo_section(rows):
    seeds = sorted({int(row["seed"]) for row in rows})
    lines = [
        "## The CLIP demo",
        "",
        f"`make demo-seeds`: test split, mean of {len(seeds)} seeds (least to greatest), each with its own split, models and "
        "search.",
        "",
        "| | " + " | ".join(SHARES.values()) + " | membership AUC |",
        "|---|" + "---|" * (len(SHARES) + 1),
    ]
    for model in ("original", "unlearned", "retrained"):
        cells = []
        for metric in SHARES:
            values = [100 * float(row[metric]) for row in rows if row["model"] == model]
            cells.append(f"{mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})")
        auc = [float(row["membership_auc"]) for row in rows if row["model"] == model]
        cells.append(f"{mean(auc):.2f} ({min(auc):.2f} to {max(auc):.2f})")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The membership attack has some fifty forget samples to learn from: where nothing leaks, its AUC scatters about one "
        "half with a standard deviation of 0.07 (docs/metrics.md).",
    ]
    return lines


def stats_section(path, rows):
    lines = [f"## segment_stats on {path.parent.name}", ""]
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        some = [row for row in rows if row["threads"] == threads]
        first = some[0]
        lines += [
            f"{first['device']}, {threads} thread{'s' * (threads != '1')}, torch {first['torch']}, commit {first['commit']}: "
            f"shapes of {first['model']}, float32, {first['case']}. All providers interleaved in one process, {first['repeats']} "
            "rounds, after each was found equal to the float64 reference.",
            "",
            "| provider | median ms (p20 to p80) | GB/s | share of a plain sum | faster than its baseline |",
            "|---|---|---|---|---|",
        ]
        for row in some:
            against = f"{row['speedup']}x ({row['baseline']})" if row["baseline"] else ""
            lines.append(
                f"| {row['provider']} | {row['median_ms']} ({row['p20_ms']} to {row['p80_ms']}) | {row['gb_per_s']} "
                f"| {row['share_of_plain_sum']} | {against} |"
            )
        lines.append("")
    return lines[:-1]


def page():
    made = "Made by `python -m benchmarks.results_page` from benchmarks/results. Not yet measured: any GPU."
    lines = ["# Results", "", made, ""]
    lines += demo_section(read(RESULTS / "demo_clip.csv"))
    for path in sorted(RESULTS.glob("*/segment_stats.csv")):
        lines += ["", *stats_section(path, read(path))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
