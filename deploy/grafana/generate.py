"""The Grafana dashboard, generated: `python deploy/grafana/generate.py` writes dashboards/sarm2.json.

A test asserts that the file equals what this module generates, and that a real Prometheus that scrapes a real
service answers every expression.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TARGET = Path(__file__).resolve().parent / "dashboards" / "sarm2.json"
DATASOURCE = {"type": "prometheus", "uid": "sarm2-prometheus"}
COLUMNS = 24
RATE = "$__rate_interval"
EPISODES = "30m"  # episodes end rarely: their quantiles need a longer window than the rates of steps

Kind = Literal["timeseries", "stat", "heatmap", "bargauge"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One expression and how its series are named (`legend` in Grafana's {{label}} form)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `width` in 24ths of the page, `height` in Grafana's grid units (30 px).

    unit: a Grafana unit id. steps: (value, colour) thresholds. note: what an operator should know.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str
    note: str
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    maximum: float | None = None
    steps: tuple[tuple[float, str], ...] = field(default=())


@dataclass(frozen=True)
class Row:
    """A titled row of panels, laid out from left to right and wrapped."""

    title: str
    panels: tuple[Panel, ...]


def series(name: str, labels: str = "") -> str:
    """A selector of the chosen instances."""
    return f'sarm2_{name}{{{labels + ", " if labels else ""}instance=~"$instance"}}'


def rate(name: str, by: str = "", labels: str = "", window: str = RATE) -> str:
    """Per-second rate of a counter, summed over everything but the labels `by`."""
    return f"sum{f' by ({by})' if by else ''} (rate({series(name, labels)}[{window}]))"


def share(part: str, whole: str) -> str:
    """`part` / `whole`, without a value while nothing happens instead of 0 / 0."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, name: str, by: str = "", window: str = RATE) -> str:
    """The q-quantile of a histogram, one series per value of the labels `by`."""
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', f'{by}, le' if by else 'le', window=window)})"


def mean(name: str, by: str = "", window: str = RATE) -> str:
    """The mean of a histogram's observations."""
    return share(rate(f"{name}_sum", by, window=window), rate(f"{name}_count", by, window=window))


def quantiles(name: str, by: str = "") -> tuple[Query, ...]:
    """p50, p95 and p99."""
    label = f"{{{{{by}}}}} " if by else ""
    return tuple(Query(quantile(q, name, by), f"{label}p{q * 100:.0f}") for q in (0.5, 0.95, 0.99))


# fmt: off
# The panels are a table; one line an argument would make it three times as long.

def overview() -> Row:
    """What an operator reads first."""
    steps = rate("scored_steps_total")
    return Row("Now", (
        Panel("Open episodes", (Query(f"sum({series('sessions')})"),), "short",
              "Episodes that a robot or a trainer holds open.", "stat", 4, 4),
        Panel("Steps scored", (Query(steps),), "reqps",
              "Frames answered with a score, a second.", "stat", 4, 4),
        Panel("Step latency, p95", (Query(quantile(0.95, "step_latency_seconds")),), "s",
              "From a frame's arrival to its score.", "stat", 4, 4,
              steps=((0.0, "green"), (0.1, "yellow"), (0.5, "red"))),
        Panel("Uncertain", (Query(share(rate("uncertain_steps_total"), steps)),), "percentunit",
              "Share of steps that the model marked uncertain.", "stat", 4, 4,
              steps=((0.0, "green"), (0.25, "yellow"), (0.5, "red"))),
        Panel("Encoder pictures a step", (Query(share(rate("encoder_images_total"), steps)),), "short",
              "The number of cameras when every frame is encoded once and none is cached.", "stat", 4, 4),
        Panel("Errors", (Query(f"{rate('errors_total')} or vector(0)"),), "reqps",
              "Errors told to callers, a second.", "stat", 4, 4,
              steps=((0.0, "green"), (0.001, "yellow"), (0.05, "red"))),
    ))


def progress() -> Row:
    """How well the episodes go."""
    final = tuple(
        Query(quantile(q, "final_progress", "task", EPISODES), f"{{{{task}}}} p{q * 100:.0f}")
        for q in (0.1, 0.5, 0.9)
    )
    return Row("Progress", (
        Panel("Final progress by task", final, "percentunit",
              f"Quantiles over the episodes of the last {EPISODES}. A falling median means failing robots.",
              width=12, maximum=1),
        Panel("Mean progress of the steps by task", (Query(mean("progress", "task"), "{{task}}"),),
              "percentunit", "Low and flat while robots move: they are not getting anywhere.",
              width=6, maximum=1),
        Panel("Progress of the steps",
              (Query(f"sum by (le) (increase({series('progress_bucket')}[{RATE}]))", "{{le}}"),), "short",
              "Where in their tasks the robots are, over time.", "heatmap", 6),
    ))


def primitives() -> Row:
    """What the robots are doing, and how sure the model is."""
    each, every = rate("primitive_total", "primitive"), rate("primitive_total")
    uncertain = share(rate("uncertain_steps_total", "instance"), rate("scored_steps_total", "instance"))
    return Row("Primitives", (
        Panel("Share of each primitive",
              (Query(f"{each} / on() group_left() ({every} > 0)", "{{primitive}}"),), "percentunit",
              "More null than usual: robots idle or fumble.", width=16, stacked=True, maximum=1),
        Panel("Uncertain share by replica", (Query(uncertain, "{{instance}}"),), "percentunit",
              "A step up after a change of camera, light or task asks for new calibration data.", maximum=1),
    ))


def latency() -> Row:
    """Where the time of a step goes."""
    return Row("Latency", (
        Panel("Step latency", quantiles("step_latency_seconds"), "s",
              "From a frame's arrival to its score.", width=6),
        Panel("Model time of a batch by part", quantiles("model_seconds", "part"), "s",
              "encode: pictures to embeddings; heads: windows to scores.", width=6),
        Panel("Device busy", (Query(rate("model_seconds_sum", "part"), "{{part}}"),), "percentunit",
              "Share of each second that the device computes; near 100 % it is full.", width=6, stacked=True),
        Panel("Event loop lag", quantiles("event_loop_lag_seconds"), "s",
              "How late a timer runs: something blocks the loop when it is above .1 s.", width=6),
    ))


def queues() -> Row:
    """The two micro-batchers."""
    return Row("Queues and batches", (
        Panel("Queue depth", (Query(f"sum by (queue) ({series('queue_depth')})", "{{queue}}"),), "short",
              "Waiting for the device. Growth without end means that a replica is missing."),
        Panel("Queue wait", quantiles("queue_wait_seconds", "queue"), "s",
              "Time between arrival and its batch."),
        Panel("Batch size",
              (Query(mean("batch_size", "queue"), "{{queue}} mean"),
               Query(quantile(0.95, "batch_size", "queue"), "{{queue}} p95")),
              "short", "Pictures (frames) or windows in one batch."),
    ))


def cache() -> Row:
    """The embeddings that need no encoder."""
    requests = rate("cache_requests_total", "tier")
    hits = rate("cache_requests_total", "tier", 'result="hit"')
    return Row("Cache", (
        Panel("Hit rate", (Query(share(f"({hits} or 0 * {requests})", requests), "{{tier}}"),), "percentunit",
              "Low for live robots, whose frames are new; high for relabelling.", maximum=1),
        Panel("Requests by result",
              (Query(rate("cache_requests_total", "tier, result"), "{{tier}} {{result}}"),), "reqps",
              "Errors of Redis cost time on resume and relabelling, never an answer."),
        Panel("Memory cache", (Query(f"sum by (instance) ({series('cache_bytes')})", "{{instance}}"),),
              "bytes", "Bounded by SARM2_CACHE_BYTES."),
    ))


def sessions() -> Row:
    """Episodes, and the work that each step costs."""
    ended = rate("final_progress_count", "task", window=EPISODES)
    pictures = share(rate("encoder_images_total", "instance"), rate("scored_steps_total", "instance"))
    return Row("Episodes", (
        Panel("Open episodes by replica",
              (Query(f"sum by (instance) ({series('sessions')})", "{{instance}}"),), "short",
              "Bounded by SARM2_MAX_SESSIONS."),
        Panel("Episodes ended", (Query(f"60 * {ended}", "{{task}}"),), "short", "A minute, by task."),
        Panel("Encoder pictures a step by replica", (Query(pictures, "{{instance}}"),), "short",
              "Above the number of cameras, frames are encoded more than once; below, the cache helps."),
    ))


def faults() -> Row:
    """What went wrong, and for whom."""
    return Row("Faults", (
        Panel("Errors by code", (Query(f"{rate('errors_total', 'code')} or vector(0)", "{{code}}"),), "reqps",
              "invalid_...: the caller's; internal, model_failed: ours.", width=12),
        Panel("Dropped frames by reason",
              (Query(f"{rate('dropped_frames_total', 'reason')} or vector(0)", "{{reason}}"),), "reqps",
              "Realtime frames that were answered with `dropped` instead of a score.", width=12),
    ))


def training() -> Row:
    """Loops of `sarm2 spiral run --metrics-port`, which are scraped themselves: the replicas know none."""
    of_round = "{{task}} round {{round}}"
    return Row("Policies in training", (
        Panel("Success of each policy", (Query("sarm2_spiral_success_ratio", "{{task}} {{policy}}"),),
              "percentunit", "On fresh scenes, by the simulator: for people, the loop never sees it.",
              width=6, maximum=1),
        Panel("Rollouts of each round",
              (Query("sarm2_spiral_final_progress", f"{of_round}: progress"),
               Query("sarm2_spiral_rollout_success_ratio", f"{of_round}: success")),
              "percentunit", "Final progress that rises while success does not: the policy fools the reward.",
              width=6, maximum=1),
        Panel("Reward hacking",
              (Query("sarm2_spiral_success_auc", f"{of_round}: ROC-AUC"),
               Query("sarm2_spiral_believed_failures_ratio", f"{of_round}: failures that look done")),
              "percentunit", "Of the latest round: how well final progress tells success from failure.",
              width=6, maximum=1),
        Panel("Failures and decisions",
              (Query("sarm2_spiral_failures", f"{of_round}: failures"),
               Query("sarm2_spiral_deployed", f"{of_round}: deployed")),
              "short", "Failed rollouts of the latest round; 1 for a candidate that was deployed, else 0.",
              width=6),
    ))
# fmt: on


def rows() -> tuple[Row, ...]:
    """The dashboard from top to bottom."""
    service = overview(), progress(), primitives(), latency(), queues(), cache(), sessions(), faults()
    return *service, training()


def field_config(panel: Panel) -> Json:
    """Units, limits, thresholds and line style."""
    steps: list[Json] = [{"color": colour, "value": value or None} for value, colour in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.steps else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps or [{"color": "text", "value": None}]},
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1 if panel.stacked else 2,
            "fillOpacity": 45 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    return {"defaults": defaults, "overrides": []}


def options(panel: Panel) -> Json:
    """What differs by the kind of panel."""
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Viridis"},
            "yAxis": {"unit": "percentunit"},
        }
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def targets(panel: Panel) -> list[Json]:
    """The panel's queries, lettered."""
    return [
        {
            "refId": chr(ord("A") + i),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for i, query in enumerate(panel.queries)
    ]


def panel_json(panel: Panel, number: int, x: int, y: int) -> Json:
    """One panel at its place."""
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": field_config(panel),
        "options": options(panel),
        "targets": targets(panel),
    }


def layout(content: Iterable[Row]) -> Iterator[Json]:
    """Rows and panels with their places; ids count up."""
    number, y = 0, 0
    for row in content:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        y += 1
        x, tallest = 0, 0
        for panel in row.panels:
            number += 1
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield panel_json(panel, number, x, y)
            x += panel.width
            tallest = max(tallest, panel.height)
        y += tallest


def instance_variable() -> Json:
    """The choice of replicas at the top of the page."""
    query = "label_values(sarm2_build_info, instance)"
    return {
        "name": "instance",
        "label": "replica",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> Json:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "sarm2",
        "title": "SARM2",
        "description": "Progress, primitives, certainty, latency, queues and cache of the scoring service.",
        "tags": ["sarm2"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [instance_variable()]},
        "panels": list(layout(rows())),
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file; with `--check`, only say whether it is up to date."""
    if arguments == ["--check"]:
        fresh = TARGET.exists() and TARGET.read_text() == render()
        print("up to date" if fresh else f"{TARGET} is stale: run python deploy/grafana/generate.py")
        return 0 if fresh else 1
    TARGET.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
