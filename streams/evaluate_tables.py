"""Tables of an evaluation besides the main one: heads beside the next item, and what another log brings."""

from typing import Any

from rich.table import Table


def more_tables(body: dict[str, Any]) -> list[Table]:
    """The tables there is something to show in.

    Args:
        body: From `models.evaluation.run.evaluate` or `models.evaluation.domains.evaluate_together`.
    """
    return [table for table in (_heads_table(body), _lift_table(body)) if table.rows]


def _heads_table(body: dict[str, Any]) -> Table:
    table = Table(title="heads beside the next item")
    for title in ("model", "head", "figure", "head's", "without a model", "by the next-item head"):
        table.add_column(title, no_wrap=True)
    for name, figures in body["models"].items():
        for head, found in figures.get("heads", {}).items():
            figure, rival = {"type": ("accuracy", "majority_accuracy"), "rating": ("rmse", "means_rmse")}.get(
                head, ("hr@10", "popularity_hr@10")
            )
            other = f"{found['next_hr@10']:.4f}" if "next_hr@10" in found else ""
            table.add_row(name, head, figure, f"{found[figure]:.4f}", f"{found[rival]:.4f}", other)
    return table


def _lift_table(body: dict[str, Any]) -> Table:
    table = Table(title="what the other log brings")
    for title in ("model", "side", "NDCG@10 without", "with", "difference (95%)"):
        table.add_column(title, no_wrap=True)
    for name, figures in body["models"].items():
        for side, found in figures.get("lift", {}).items():
            one = found["ndcg@10"]
            low, high = one["interval"]
            words = f"{one['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
            table.add_row(name, side, f"{one['without']:.4f}", f"{one['with']:.4f}", words)
    return table
