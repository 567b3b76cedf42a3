"""open_clip's ``CoCa.generate`` in a process of its own, for ``python -m mmlm.bench generation``.

Run as a file by the interpreter of another environment, and so importing nothing of mmlm: ``open_clip_generate.py
CONFIG FOLDER THREADS`` makes a CoCa of the JSON file CONFIG with random weights, writes them to FOLDER, and then reads
requests from standard input, one JSON object a line, and answers each with one on standard output.
"""

import json
import sys
import time
from pathlib import Path

import torch
from open_clip.coca_model import CoCa

WEIGHTS, IMAGES = "weights.pt", "images.pt"
"""Files in FOLDER: the state dict, and the pixels float32[B, 3, S, S] to caption."""


def random_model(config: dict) -> CoCa:
    """A CoCa every weight of which is random, so that no two tokens are equally probable."""
    torch.manual_seed(0)
    sizes = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")}
    model = CoCa(**sizes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith(("embedding", "text_projection")):
                parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.1))
                if "ln_" in name and name.endswith("weight"):
                    parameter.add_(1)
    return model


def main(config: str, folder: str, threads: str) -> None:
    """See the file's docstring."""
    torch.set_num_threads(int(threads))
    model = random_model(json.loads(Path(config).read_text(encoding="utf-8")))
    torch.save(model.state_dict(), Path(folder) / WEIGHTS)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        images = torch.load(Path(folder) / IMAGES, weights_only=True)
        begun = time.process_time()
        if request["beams"] == 1:
            # Drawn from the most probable token alone: open_clip's way to a greedy caption.
            tokens = model.generate(images, seq_len=request["tokens"], generation_type="top_k", top_k=1)
        else:
            tokens = model.generate(images, seq_len=request["tokens"], num_beams=request["beams"])
        seconds = time.process_time() - begun
        print(json.dumps({"seconds": seconds, "tokens": tokens.tolist()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
