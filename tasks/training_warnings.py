"""What a training has too little of to come out well."""

from data_contracts.artifact import Manifest
from data_contracts.enums import LabelStatus
from data_contracts.training import TrainingConfig
from data_contracts.wording import counted
from sdrpn_core.rpn.config import ValidationSummary
from tasks.shard_statistics import status_statistic

FEW_LABELS = 500
"""Below, the RPN of the built-in model was clearly worse (README)."""
FEW_STEPS = 10
"""Below, most steps are warm-up: a recipe for many labels meets few."""

LOW_AUC = 0.75
"""One half is chance; the built-in model's RPN has 0.9995."""


def validation_warnings(validation: ValidationSummary | None) -> list[str]:
    """What is said of an RPN that has hardly learnt anything."""
    if validation is None or validation.calibration.auc >= LOW_AUC:
        return []
    return [
        "the RPN hardly tells foreground from background on validation images (AUC "
        f"{validation.calibration.auc:.2f}, "
        "chance is 0.5): lower training.learning_rate, or look at the labels (`sdrpn report`)"
    ]


def training_warnings(label_set: Manifest, settings: TrainingConfig) -> list[str]:
    """One sentence for each, with the remedy; none without labels, which is an error."""
    num_labelled = _number(label_set, LabelStatus.OK)
    num_steps = settings.about_num_steps(num_labelled)
    found: list[str] = []
    if num_labelled == 0:
        return found
    if num_labelled < FEW_LABELS:
        asked = counted(label_set.num_rows, "question")
        found.append(
            f"only {counted(num_labelled, 'label')} to train on (of {asked}): an RPN trained on "
            f"fewer than {FEW_LABELS} misses many regions; add questions"
        )
    if num_steps < FEW_STEPS:
        found.append(
            f"fewer than {FEW_STEPS} training steps (about {num_steps}) hardly change an RPN: "
            f"lower training.batch_size ({settings.batch_size}) or raise training.num_epochs "
            f"({settings.num_epochs})"
        )
    return found


def lost_questions(label_set: Manifest) -> list[str]:
    """What became of the questions, if most give no label: the report has it in a table."""
    counts = {status: _number(label_set, status) for status in LabelStatus}
    num_labelled = counts.pop(LabelStatus.OK)
    if 2 * num_labelled >= label_set.num_rows:
        return []
    told = ", ".join(f"{number} {status.value}" for status, number in counts.items() if number)
    return [
        f"{num_labelled} of {label_set.num_rows} questions give a label (others: {told}): `sdrpn "
        f"artifacts show {label_set.recipe.ref} --rejected` says why, question by question"
    ]


def _number(label_set: Manifest, status: LabelStatus) -> int:
    return int(label_set.statistics.get(status_statistic(status.value), 0))
