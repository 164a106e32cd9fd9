"""Baseline: RecBole 1.2.1's GRU4Rec, trained and evaluated by RecBole's own code; prints one JSON line.

Runs in a virtual environment of its own (see `benchmarks.harness.recbole`) and imports nothing of this project. One
sample of an epoch is one prefix of a user's history with the item that came next, as RecBole's augmentation makes them;
every prefix is run through the GRU from its start. Each epoch is timed without its evaluation. The epoch with the best
validation NDCG@10 is evaluated on the test items: full ranking, seen items not masked, RecBole's rule for sequential
models.
"""

import argparse
import copy
import json
import logging
import time
from typing import Any

import torch
from recbole.config import Config  # type: ignore[import-not-found]
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
from recbole.model.sequential_recommender import GRU4Rec  # type: ignore[import-not-found]
from recbole.trainer import Trainer  # type: ignore[import-not-found]
from recbole.utils import init_seed  # type: ignore[import-not-found]


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """RecBole's settings; what is not named here is RecBole's default."""
    return {
        "data_path": args.data,
        "checkpoint_dir": args.data,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 50,
        "embedding_size": args.embedding,
        "hidden_size": args.hidden,
        "num_layers": 1,
        "dropout_prob": 0.3,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": args.batch,
        "eval_batch_size": 2048,
        "learning_rate": 0.001,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": args.device == "cuda",
        "seed": args.seed,
        "show_progress": False,
        "state": "ERROR",
    }


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="directory that holds NAME/NAME.inter")
    parser.add_argument("--name", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    config = Config(model="GRU4Rec", dataset=args.name, config_dict=configuration(args))
    init_seed(args.seed, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    model = GRU4Rec(config, train.dataset).to(config["device"])
    trainer = Trainer(config, model)
    seconds, quality, best, weights = [], [], -1.0, model.state_dict()
    for epoch in range(args.epochs):
        started = time.perf_counter()
        trainer._train_epoch(train, epoch, show_progress=False)
        seconds.append(time.perf_counter() - started)
        score, _ = trainer._valid_epoch(valid, show_progress=False)
        quality.append(float(score))
        if score > best:
            best, weights = float(score), copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    found = trainer.evaluate(test, load_best_model=False, show_progress=False)
    result = {
        "samples": len(train.dataset),
        "epoch_seconds": seconds,
        "valid_ndcg_at_10": quality,
        "hr_at_10": float(found["hit@10"]),
        "ndcg_at_10": float(found["ndcg@10"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
