"""What the dashboards show. After a change: `python deploy/grafana/panels.py`."""

from panels import Dashboard, Panel

RATE = "[$__rate_interval]"


def quantile(share: float, metric: str = "recstream_event_to_recommendation_seconds") -> tuple[str, str]:
    """A quantile of a histogram over all workers, with its legend."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{RATE})))", f"p{100 * share:g}"


def mean(metric: str, window: str = RATE) -> tuple[str, str]:
    """The mean of a histogram over all workers, with its legend."""
    return f"sum(rate({metric}_sum{window})) / (sum(rate({metric}_count{window})) > 0)", "mean"


def rate(metric: str, by: str = "", where: str = "") -> tuple[str, str]:
    """Per second, by a label, with its legend."""
    labels = f"{{{where}}}" if where else ""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({metric}{labels}{RATE}))", " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if by)


def serving(expr: str) -> tuple[str, str]:
    """Of an expression by version those that serve: workers go on telling what they counted for all before."""
    lists, _ = rate("recstream_recommendations_total", "model_version")
    return f"{expr} and on (model_version) {lists} > 0", "{{model_version}}"


LATENCY = Panel(
    "Event to recommendation", [quantile(0.5), quantile(0.99), quantile(0.999)], "s", above=0.25, log=True,
    text="From the event's timestamp in Kafka to its recommendation handed to the producer. Catching up after a stop "
    "counts as slow. Dashed: the objective, within which 99% have to be.",
)  # fmt: skip
LAG = Panel(
    "Events waiting", [("sum by (topic) (recstream_consumer_lag)", "{{topic}}")], stack=True,
    text="Events in Kafka that their worker has not read yet.",
)  # fmt: skip
QUALITY = Panel(
    "Live hit rate, last hour",
    [("recstream:live_hit_rate:rate1h", "lists that were served"),
     ("recstream:live_popularity_hit_rate:rate1h", "popularity, on the same events")],
    "percentunit",
    text="Share of events whose item was in the list that its user was served before the event.",
)  # fmt: skip
DEAD_LETTERS = Panel("Dead letters", [rate("recstream_dead_letters_total", "reason")], "eps", stack=True,
                     nothing="none counted")  # fmt: skip
EVENTS = Panel("Events", [rate("recstream_events_total", "topic, outcome")], "eps", stack=True)
USERS = Panel("Users with state", [("sum by (tier) (recstream_users)", "{{tier}}")], stack=True)

OVERVIEW = Dashboard(
    "recstream-overview", "overview", "Is it well, is it quick, is it good?",
    [
        Panel("Workers ready", [("sum(recstream_ready) or vector(0)", "")], kind="stat", width=4, below=1),
        Panel("Alerts firing", [('count(ALERTS{alertname=~"Recstream.*",alertstate="firing"}) or vector(0)', "")],
              kind="stat", width=4, above=1),
        Panel("Events per second", [rate("recstream_events_total", where='outcome="applied"')], "eps", "stat", 4),
        Panel("Latency, p99", [(f"{quantile(0.99)[0]} >= 0", "")], "s", "stat", 4, above=0.25, nothing="no events"),
        Panel("Waiting", [("recstream:lag:sum", "")], kind="stat", width=4, above=10_000),
        Panel("Live hit rate", [("recstream:live_hit_rate:rate1h", "")], "percentunit", "stat", 4),
        EVENTS, LATENCY, LAG, QUALITY, DEAD_LETTERS, USERS,
        Panel("Model being served", [("max by (version) (recstream_model_info)", "{{version}}")], kind="stat", width=8,
              name=True),
        Panel("Age of the newest model being served",
              [("time() - max(recstream_model_created_timestamp_seconds > 0)", "")], "s", "stat", 8, above=86_400),
        Panel("Slower than 0.25 s, last hour", [("recstream:slow_ratio:rate1h", "")], "percentunit", "stat", 8,
              above=0.01),
    ],
)  # fmt: skip

STREAM = Dashboard(
    "recstream-stream", "stream", "What comes in, what goes out, how long it takes.",
    [
        EVENTS,
        Panel("Recommendations by model version",
              [(f"{rate('recstream_recommendations_total', 'model_version')[0]} > 0", "{{model_version}}")], "mps",
              stack=True),
        LATENCY,
        Panel("Latency, all of it", [(f"sum by (le) (rate(recstream_event_to_recommendation_seconds_bucket{RATE}))",
              "{{le}}")], "s", "heatmap"),
        Panel("Slower than 0.25 s",
              [(f"recstream:slow_ratio:rate{window}", window) for window in ("5m", "30m", "1h", "6h", "3d")],
              "percentunit", above=0.01, text="Dashed: the objective allows 1% over 30 days."),
        Panel("Events in a batch", [mean("recstream_batch_events"), quantile(0.99, "recstream_batch_events")],
              log=True, text="Larger batches mean more load: they save work per event."),
        Panel("Events by worker", [rate("recstream_events_total", "instance")], "eps"),
        LAG,
        Panel("Events waiting, the ten fullest partitions",
              [("sum by (topic, partition) (recstream_consumer_lag) and topk(10, max by (topic, partition) "
                "(max_over_time(recstream_consumer_lag[$__range] @ end())))", "{{topic}} {{partition}}")],
              text="Those with the highest peak of the time range. One that stands out has a hot user or a stuck "
              "worker."),
        DEAD_LETTERS,
        Panel("Share of events that cannot be used", [("recstream:rejected_ratio:rate5m", "rejected")], "percentunit",
              width=8),
        Panel("Cores used",
              [rate("process_cpu_seconds_total", "job, instance", 'job=~"recstream-.*"'),
               (f"sum(rate(recstream_compute_seconds_total{RATE}))", "of it computing lists")],
              width=8, text="A worker uses about one core; more workers use more."),
        Panel("Memory", [('process_resident_memory_bytes{job=~"recstream-.*"}', "{{job}} {{instance}}")], "bytes",
              width=8),
    ],
)  # fmt: skip

LEARNING = Dashboard(
    "recstream-learning", "learning", "Does the model get better, and does it reach the workers?",
    [
        QUALITY,
        Panel("Live hit rate by version, last hour",
              [serving("recstream:live_hit_rate_of_version:rate1h"),
               ("recstream:live_popularity_hit_rate:rate1h", "popularity, on the same events")], "percentunit",
              text="A version's line ends where it serves no more."),
        Panel("Live MRR by version", [serving("avg by (model_version) (recstream_live_mrr)")],
              text="Mean reciprocal rank over the last 10,000 tested events of each worker."),
        Panel("Live hit rate by version, last 10,000 tested events",
              [serving("avg by (model_version) (recstream_live_hit_rate)"),
               ("avg(recstream_live_popularity_hit_rate)", "popularity"),
               ("recstream_trainer_hit_rate", "the network alone, as the trainer sees it")], "percentunit"),
        Panel("Lists tested",
              [(*rate("recstream_live_tested_total")[:1], "lists tested"),
               (*rate("recstream_live_hits_total")[:1], "hits"),
               (*rate("recstream_live_popularity_hits_total")[:1], "popularity's hits")], "eps",
              text="By the next event of a user who had been served a list."),
        Panel("Version being served", [("recstream_model_number", "{{instance}}")],
              text="All workers should be on one line a few seconds after a promotion."),
        Panel("Passes in an hour",
              [("sum by (result) (increase(recstream_trainer_versions_total[1h]))", "{{result}}"),
               ("sum by (trigger) (increase(recstream_trainer_passes_total[1h]))", "begun: {{trigger}}")]),
        Panel("At the gate, NDCG@10", [("recstream_trainer_gate_ndcg", "{{model}}")],
              text="On the newest events, which no candidate trained on. The candidate must not be worse."),
        Panel("Training loss", [("recstream_trainer_loss", "newest epoch")]),
        Panel("Duration of a pass, last hour", [mean("recstream_trainer_pass_seconds", "[1h]")], "s"),
        Panel("Learning", [("recstream_trainer_samples_per_second", "events learnt per second"),
              (*rate("recstream_trainer_events_total")[:1], "events taken in per second")],
              "eps", log=True),
        Panel("The running pass", [("recstream_trainer_progress", "done"), ("recstream_trainer_training", "running")],
              "percentunit"),
        Panel("Replay buffer",
              [("recstream_trainer_buffer_events", "events"), ("recstream_trainer_buffer_items", "items")]),
        Panel("Replay buffer on disk", [("recstream_trainer_buffer_bytes", "file")], "bytes"),
        Panel("Trainer's lag", [("recstream_trainer_lag", "events")], width=8),
        Panel("Trouble",
              [("sum(increase(recstream_model_refused_total[1h]))", "versions refused by workers"),
               ("sum(increase(recstream_trainer_drift_alarms_total[1h]))", "drift alarms"),
               ("sum(increase(recstream_trainer_invalid_total[1h]))", "events the trainer cannot use")],
              width=8, text="In the last hour."),
        Panel("Privacy spent", [("recstream_trainer_epsilon > 0", "epsilon")],
              width=8, nothing="no differential privacy", text="Of the newest version."),
    ],
)  # fmt: skip

STATE = Dashboard(
    "recstream-state", "state", "What is remembered, and how it gets through a restart.",
    [
        USERS,
        Panel("State in memory", [("sum by (instance) (recstream_state_bytes)", "{{instance}}")], "bytes", stack=True),
        Panel("Items known", [("recstream_items", "{{instance}}")]),
        Panel("Changelog records", [rate("recstream_changelog_records_total", "instance")], "recps",
              text="A user who changed often between two flushes is one record."),
        Panel("Duration of a flush", [("recstream_flush_seconds", "{{instance}}")], "s",
              text="Until the broker has acknowledged it. Above the commit interval the broker is the bottleneck."),
        Panel("Flushes", [rate("recstream_flushes_total", "instance")], "ops"),
        Panel("Local snapshots", [("sum by (result) (increase(recstream_snapshots_total[1h]))", "{{result}}")],
              text="In the last hour. Failed: a worker's log says why. Dropped: the partition left meanwhile."),
        Panel("Duration of a snapshot", [("recstream_snapshot_seconds", "{{instance}}")], "s",
              text="Time to write the last one, beside the stream. Only restarts and erasures wait for it."),
        Panel("Duration of the last restore", [("recstream_restore_seconds", "{{instance}} {{source}}")], "s"),
        Panel("Users of the last restore", [("recstream_restore_users", "{{instance}} {{source}}")]),
        Panel("State records read", [rate("recstream_restore_records_total", "source"),
              (*rate("recstream_restore_bad_records_total")[:1], "unreadable")], "recps"),
        Panel("Hidden vectors rebuilt", [rate("recstream_rehydrations_total", "instance")], "ops",
              text="After a model swap, when a user's next event comes."),
        Panel("Users expired", [rate("recstream_users_expired_total", "instance")], "cps", width=8),
        Panel("Users erased on request",
              [("sum(increase(recstream_forgotten_users_total[1h]))", "workers"),
               ("sum(increase(recstream_trainer_forgotten_users_total[1h]))", "trainer"),
               ("sum(recstream_forget_pending)", "waiting at the workers"),
               ("sum(recstream_trainer_forget_pending)", "waiting at the trainer")],
              width=8, text="Requests answered in an hour, and requests read and not answered yet."),
        Panel("Ready", [("recstream_ready", "{{instance}}")], width=8,
              text="0 while restoring, rebalancing or cut off from Kafka."),
    ],
)  # fmt: skip

DASHBOARDS = {"overview": OVERVIEW, "stream": STREAM, "learning": LEARNING, "state": STATE}
