"""From imported attention to labels, a label set and an RPN: the pipeline's stages, without its
first ones."""

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.interop import PublishedLabels
from data_contracts.settings_files import ConfigError
from flows.execution import Execution
from tasks.import_labels import import_labels
from tasks.make_labels import make_labels
from tasks.merge_labels import merge_labels
from tasks.models import pinned, profile_of, require_usable_settings
from tasks.train_rpn import train_rpn

STAGES = (Stage.EXTRACT_ATTENTION, Stage.MAKE_LABELS, Stage.MERGE_LABELS, Stage.TRAIN_RPN)


def run_import(
    labels: PublishedLabels, config: PipelineConfig | None, execution: Execution, until: Stage
) -> ArtifactRef:
    """Import label pickles and go on to a stage; returns the imported attention.

    Args:
        labels: what to import.
        config: model, label, training and region settings of the stages after the import.
        execution: how to run them.
        until: last stage.

    Raises:
        ConfigError: if the stage cannot follow an import, or needs a configuration.
        ModelError: before anything is imported, if the model cannot be had or follow the settings.
        UncalibratedProfile: if nobody knows where the configuration's model would branch off.
    """
    if until not in STAGES:
        names = ", ".join(stage.value for stage in STAGES)
        raise ConfigError(f"--until {until.value} cannot follow an import: choose from {names}")
    if until is not Stage.EXTRACT_ATTENTION and config is None:
        raise ConfigError(
            f"--until {until.value} needs --config: the configuration whose model, labels, "
            "training and regions apply (its sources are not read)"
        )
    if config is not None:
        config = _checked(config, until)
    execution.store.check_writable()
    attention = execution.whole(Stage.EXTRACT_ATTENTION, import_labels, labels, label="imported")
    if until is not Stage.EXTRACT_ATTENTION and config is not None:
        _go_on(config, execution, attention, until)
    return attention


def _checked(config: PipelineConfig, until: Stage) -> PipelineConfig:
    """The configuration, whose model and settings will do for the stages after an import."""
    profile = profile_of(config.model)
    profile.require_calibrated()
    require_usable_settings(config)
    config.label_settings(profile)
    if until is not Stage.TRAIN_RPN:
        return config
    config.training_settings(profile)
    return config.model_copy(update={"model": pinned(config.model)})


def _go_on(
    config: PipelineConfig, execution: Execution, attention: ArtifactRef, until: Stage
) -> None:
    profile = profile_of(config.model)
    labels = execution.whole(
        Stage.MAKE_LABELS,
        make_labels,
        attention,
        config.label_settings(profile),
        label="imported",
    )
    if until is Stage.MAKE_LABELS:
        return
    label_set = execution.whole(Stage.MERGE_LABELS, merge_labels, [labels])
    if until is Stage.TRAIN_RPN:
        execution.whole(
            Stage.TRAIN_RPN,
            train_rpn,
            label_set,
            config.model,
            config.training_settings(profile),
            config.region_settings(profile),
        )
