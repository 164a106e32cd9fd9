"""Baseline: RecBole 1.2.1's GRU4Rec, SASRec or BERT4Rec, trained by RecBole's own code on a split that it is given.

Runs in a virtual environment of its own (see `benchmarks.harness.recbole`) and imports nothing of this project. The
folder ``--data`` holds the samples to learn from as RecBole's benchmark files, and in ``ask.npz`` the histories whose
next item is to be ranked. After each epoch the validation histories are ranked; the best epoch's ranks of the judged
ones are written to ``found.npz``. What was trained is kept in ``kept.pt``, so that a later call goes on with it: epochs
take minutes, and `--seconds` ends the run after the epoch in which they have passed.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config  # type: ignore[import-not-found]
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
from recbole.data.interaction import Interaction  # type: ignore[import-not-found]
from recbole.utils import get_model, get_trainer, init_seed  # type: ignore[import-not-found]

ASKED = 512  # histories scored at a time
# What is not named here is RecBole's default: SASRec and BERT4Rec have two layers, two heads, 64 wide.
OPTIONS: dict[str, dict[str, Any]] = {
    "GRU4Rec": {"embedding_size": 64, "hidden_size": 128, "num_layers": 1, "dropout_prob": 0.3},
    "SASRec": {},
    "BERT4Rec": {},
}


def configuration(args: argparse.Namespace, longest: int) -> dict[str, Any]:
    """RecBole's settings; histories are cut to their last ``longest`` items."""
    return {
        "data_path": args.data,
        "checkpoint_dir": args.data,
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "MAX_ITEM_LIST_LENGTH": longest,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": args.batch,
        "eval_batch_size": 2048,
        "learning_rate": 0.001,
        "eval_args": {"group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": args.device == "cuda",
        "seed": args.seed,
        "show_progress": False,
        "state": "ERROR",
        **OPTIONS[args.model],
    }


class Asked:
    """Histories to rank after: RecBole's item numbers of the last L items, what is masked, and what came next."""

    def __init__(self, arrays: Any, part: str, number: np.ndarray, device: str) -> None:
        def there(column: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(column).to(device)

        self.lists = there(number[arrays[f"{part}_lists"]])  # (K, L)
        self.lengths = there(arrays[f"{part}_lengths"])  # (K,)
        self.targets = there(number[arrays[f"{part}_targets"]])  # (K,)
        # Pairs of history and item.
        self.had = there(arrays[f"{part}_had_rows"]), there(number[arrays[f"{part}_had_items"]])
        # An item that was never learnt has no row in RecBole: it can never be found.
        self.unknown = self.targets == 0

    def ranks(self, model: Any, masked: bool) -> np.ndarray:
        """1 + better + ties / 2 among all items (K,)."""
        found = []
        with torch.no_grad():
            for begin in range(0, len(self.lists), ASKED):
                part = slice(begin, begin + ASKED)
                batch = Interaction({"item_id_list": self.lists[part], "item_length": self.lengths[part]})
                scores = model.full_sort_predict(batch)[:, : model.n_items].clone()
                scores[:, 0] = -torch.inf
                if masked:
                    mine = (self.had[0] >= begin) & (self.had[0] < begin + len(scores))
                    scores[self.had[0][mine] - begin, self.had[1][mine]] = -torch.inf
                    scores[:, 0] = -torch.inf
                score = scores.gather(1, self.targets[part, None])
                ties = (scores == score).sum(1) - 1
                ranks = (1 + (scores > score).sum(1) + ties / 2).double()
                ranks[(score[:, 0] == -torch.inf) | self.unknown[part]] = torch.inf
                found.append(ranks.cpu().numpy())
        return np.concatenate(found)


def ndcg(ranks: np.ndarray) -> float:
    """NDCG@10."""
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())


def place(device: str) -> str:
    """What a device is called."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def main() -> None:
    """Train on, rank, write, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="directory that holds NAME/NAME.train.inter and ask.npz")
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", choices=OPTIONS, required=True)
    parser.add_argument("--epochs", type=int, required=True, help="most epochs, those of earlier calls included")
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = Path(args.data)
    arrays = np.load(folder / "ask.npz")
    settings = configuration(args, int(arrays["longest"]))
    config = Config(model=args.model, dataset=args.name, config_dict=settings)
    init_seed(args.seed, True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = get_model(args.model)(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    tokens = dataset.field2token_id["item_id"]
    number = np.array([0] + [tokens.get(str(row), 0) for row in range(1, int(arrays["items"]))])
    validation, judged = (Asked(arrays, part, number, args.device) for part in ("valid", "test"))
    kept: dict[str, Any] = {"epoch_seconds": [], "valid_ndcg_at_10": []}
    if (folder / "kept.pt").is_file():
        kept = torch.load(folder / "kept.pt", map_location=args.device, weights_only=False)
        model.load_state_dict(kept["model"])
        trainer.optimizer.load_state_dict(kept["optimizer"])
        init_seed(args.seed + len(kept["epoch_seconds"]), True)
    quality = kept["valid_ndcg_at_10"]
    kept.setdefault("devices", ["cpu"] * len(quality))

    def finished() -> bool:
        best = int(np.argmax(quality)) if quality else 0
        return len(quality) >= args.epochs or len(quality) - 1 - best >= args.patience

    while not finished() and time.perf_counter() - started < args.seconds:
        begun = time.perf_counter()
        trainer._train_epoch(train, len(quality), show_progress=False)
        kept["epoch_seconds"].append(time.perf_counter() - begun)
        model.eval()
        quality.append(ndcg(validation.ranks(model, masked=False)))
        if quality[-1] == max(quality):
            np.savez(folder / "found.npz", unmasked=judged.ranks(model, False), masked=judged.ranks(model, True))
        kept["devices"].append(place(args.device))
        kept |= {"model": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        torch.save(kept, folder / "kept.pt")
    result = {
        "samples": len(train.dataset),
        "epoch_seconds": kept["epoch_seconds"],
        "valid_ndcg_at_10": quality,
        "finished": finished(),
        "devices": list(dict.fromkeys(kept["devices"])),
        "stopped_early": len(quality) < args.epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
