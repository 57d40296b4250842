"""What reading attention costs: ``python -m benchmarks.capture_overhead``.

Answers the same batch (a) without read-out, (b) with the rows of interest recorded, and (c) with
stock eager attention and ``output_attentions=True``, the way every fork does it.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image

from benchmarks.random_llava import random_llava
from benchmarks.timing import paired_seconds, print_ratios
from data_contracts.enums import QuestionKind
from sdrpn_core.extraction.generated_answers import Request, capture_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    adapter = random_llava()
    rng = np.random.default_rng(0)
    requests = [
        Request(
            Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)),
            "what is the small red word ?",
            QuestionKind.NATURAL,
        )
        for _ in range(options.batch_size)
    ]
    prompts = [
        adapter.embed_prompt(request.question, adapter.encode_images([request.image]))
        for request in requests
    ]
    embeds = torch.stack([prompt.embeds for prompt in prompts])
    heads = adapter.profile.heads[QuestionKind.NATURAL].captured

    def capture(wanted: dict[int, tuple[int, ...] | None]) -> object:
        return capture_attention(adapter, requests, wanted, max_new_tokens=options.max_new_tokens)

    def eager() -> object:
        adapter.model.set_attn_implementation({"text_config": "eager"})
        try:
            return adapter.model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                suppress_tokens=[adapter.image_token_id, 2],
                output_attentions=True,
                return_dict_in_generate=True,
            )
        finally:
            adapter.model.set_attn_implementation({"text_config": "sdrpn_sdpa"})

    seconds = paired_seconds(
        {
            "no read-out": lambda: capture({}),
            "rows of interest": lambda: capture(heads),
            "eager, output_attentions": eager,
        },
        options.rounds,
        time.process_time,
    )
    print_ratios(seconds, "no read-out")
    length = embeds.shape[1]
    full = 4 * options.batch_size * adapter.profile.num_layers * adapter.profile.num_heads
    print(f"maps kept by eager: {full * length**2 / 2**20:8.1f} MiB for the prompt alone")
    kept = sum(len(layer_heads or range(8)) for layer_heads in heads.values())
    print(f"rows kept by read-out: {4 * options.batch_size * kept * 576 * 2 / 2**20:5.2f} MiB")


if __name__ == "__main__":
    main()
