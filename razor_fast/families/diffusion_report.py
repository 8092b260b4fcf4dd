"""What a report shows of a DiffusionTask: UA, IRA and CRA with intervals, and pictures of the same seeds side by side."""

__all__ = ["report_sections", "take_snapshot"]


def take_snapshot(task):
    """The task's model as it is now, on test: {"metrics", "intervals", "pictures"}, plain values."""
    from ..threads import fixed_threads

    with fixed_threads(task.model):
        found, images, prompts = task._judge("test")
    return {"metrics": dict(found), "intervals": found.intervals}


def report_sections(task, snapshots):
    """snapshots: dict column name -> snapshot, in the order shown."""
    return {
        "interval_name": "95 % Wilson interval",
        "columns": [
            {"name": name, "metrics": shot["metrics"], "intervals": shot["intervals"]}
            for name, shot in snapshots.items()
        ],
    }
