"""Labels from the data set's own answers against labels from the model's, on generated scenes.

Run from the repository root: ``python -m benchmarks.given_responses [--images 100]``. Prints, for
the built-in model, touch precision and recall of the labels against the true boxes and questions
per CPU second: with generated answers, with given answers turn by turn, and with given answers a
whole conversation at a time. Times cover all but the vision tower, which all three share.
"""

import argparse
import json
import time

from data_contracts.enums import QuestionKind
from sdrpn_core.evaluation.results import label_quality
from sdrpn_core.extraction.conversation_layout import Conversation, Turn
from sdrpn_core.extraction.generated_answers import Request, extract_attention
from sdrpn_core.extraction.teacher_forcing import extract_from_answers
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX

FIRST_SEED = 900_000
NUM_TURNS = 3
BATCH_SIZE = 16
MAX_NEW_TOKENS = 16
MAX_TOKENS = 1024
NEXT_TURN = "</s> USER: {question} ASSISTANT:"


def scenes_in_batches(num_images):
    """Lists of scenes, BATCH_SIZE at a time."""
    seeds = range(FIRST_SEED, FIRST_SEED + num_images)
    for start in range(0, num_images, BATCH_SIZE):
        yield [make_scene(seed) for seed in seeds[start : start + BATCH_SIZE]]


def asked(turn):
    """A question as the mix asks it."""
    return f"{turn.question}{SHORT_ANSWER_SUFFIX}"


def from_generated(adapter, scenes, features):
    """What the model's own answers attend to: a list per scene, an entry per turn."""
    pairs = [(scene, turn) for scene in scenes for turn in scene.turns[:NUM_TURNS]]
    by_scene = dict(zip(map(id, scenes), features, strict=True))
    found = extract_attention(
        adapter,
        [Request(s.image, asked(turn), QuestionKind(s.question_kind)) for s, turn in pairs],
        max_new_tokens=MAX_NEW_TOKENS,
        features=[by_scene[id(scene)] for scene, _ in pairs],
    )
    rows = iter(found)
    return [[next(rows) for _ in scene.turns[:NUM_TURNS]] for scene in scenes]


def from_given(adapter, scenes, features):
    """What the scenes' own answers attend to: a list per scene, an entry per turn."""
    talks = [
        Conversation(
            scene.image,
            tuple(Turn(asked(turn), turn.answer) for turn in scene.turns[:NUM_TURNS]),
            QuestionKind(scene.question_kind),
        )
        for scene in scenes
    ]
    return extract_from_answers(adapter, talks, max_tokens=MAX_TOKENS, features=features)


def quality_row(found, turn):
    """What ``label_quality`` wants to know of one turn."""
    box = found.letterbox
    names = ("image_width", "image_height", "pad_left", "pad_top", "canvas_width", "canvas_height")
    return {name: getattr(box, name) for name in names} | {
        "true_box": list(turn.box),
        "roi_map": None if found.grounding is None else found.grounding.flatten().tolist(),
        "sink_map": None if found.sink is None else found.sink.flatten().tolist(),
        "grid_height": found.grid.height,
        "grid_width": found.grid.width,
    }


def measure(adapter, extract, batches):
    """Label quality and questions per CPU second of one way."""
    rows, seconds = [], 0.0
    for scenes, features in batches:
        start = time.process_time()
        found = extract(adapter, scenes, features)
        seconds += time.process_time() - start
        for scene, turns in zip(scenes, found, strict=True):
            own = scene.turns[:NUM_TURNS]
            rows += [quality_row(row, turn) for row, turn in zip(turns, own, strict=True)]
    final = label_quality(rows, adapter.profile.labels)[-1]
    return {
        "questions": len(rows),
        "with_attention": final.num_samples,
        "labelled": final.num_labelled,
        "touch_precision": round(final.touch_precision, 3),
        "recall": round(final.recall, 3),
        "questions_per_cpu_second": round(len(rows) / seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    profile = load_profile("reference")
    alone = load_adapter(profile.model_copy(update={"next_turn": None}), device="cpu")
    whole = load_adapter(profile.model_copy(update={"next_turn": NEXT_TURN}), device="cpu")
    batches = [
        (scenes, alone.encode_images([scene.image for scene in scenes], for_labels=True))
        for scenes in scenes_in_batches(parser.parse_args().images)
    ]
    ways = {
        "generated": (alone, from_generated),
        "given, turn by turn": (alone, from_given),
        "given, whole conversation": (whole, from_given),
    }
    for adapter, extract in ways.values():
        extract(adapter, *batches[0])  # warm-up
    for name, (adapter, extract) in ways.items():
        print(json.dumps({"responses": name, **measure(adapter, extract, batches)}))


if __name__ == "__main__":
    main()
