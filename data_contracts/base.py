"""Bases of settings models: immutable, unknown keys are errors; and of changes to settings."""

from typing import Any, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from data_contracts.wrong_settings import (
    BESIDE,
    SECTIONS,
    UNKNOWN_KEY,
    VALID_KEYS,
    WrongSetting,
    problems_of,
)


class Settings(BaseModel):
    """Frozen pydantic model that refuses keys it does not know, and says which it knows."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # JSON, by which artifacts are known, has no such numbers
        hide_input_in_errors=True,  # Prefect logs them, and values may be secret
    )

    def with_changes(self, **changes: Any) -> Self:
        """The same settings with some changed.

        Raises:
            WrongSetting: for a key that is not known, or a value that is not allowed.
        """
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise WrongSetting(problems_of(error)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _empty_sections_are_none_and_unknown_keys_name_the_valid(
        cls, data: Any, handler: ModelWrapValidatorHandler[Self]
    ) -> Self:
        if isinstance(data, dict):  # a section may have all of its keys commented out
            data = {k: v for k, v in data.items() if v is not None or not _is_left_out(cls, k)}
        try:
            return handler(data)
        except ValidationError as error:
            problems = error.errors()
            if not any(problem["type"] == UNKNOWN_KEY for problem in problems):
                raise
            raise ValidationError.from_exception_data(
                error.title,
                [_with_valid_keys(problem, cls) for problem in problems],
                hide_input=True,
            ) from None


S = TypeVar("S", bound=Settings)


def _without_defaults(schema: dict[str, Any]) -> None:
    """A key that is left out is the profile's, so a form must not fill in a value."""
    for key in schema["properties"].values():
        key.pop("default", None)


class Changes(Settings):
    """Settings that a run changes; keys that are left out stay those of the profile.

    Inherit the keys from what the settings themselves inherit them from.
    """

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    @model_serializer(mode="wrap")
    def _given_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Read back, what was left out must still be left out."""
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if key in self.model_fields_set}

    def applied_to(self, settings: S) -> S:
        """The settings with these changes.

        Raises:
            WrongSetting: if the two do not go together.
        """
        return settings.with_changes(**self.model_dump())


def _with_valid_keys(problem: ErrorDetails, model: type[Settings]) -> InitErrorDetails:
    """The same error; one of an unknown key with the keys of its model."""
    context = problem.get("ctx", {})
    kind: str | PydanticCustomError = problem["type"]
    if problem["type"] == UNKNOWN_KEY:
        known = ", ".join(model.model_fields)
        sections = ", ".join(_sections_with(model, str(problem["loc"][-1])))
        # An inner model's error has its keys already.
        context = {VALID_KEYS: known, SECTIONS: sections} | context
        if len(problem["loc"]) == 2:  # it is of one of this model's sections
            context = context | {BESIDE: sections}
        kind = PydanticCustomError(UNKNOWN_KEY, "Not one of the keys {valid_keys}", context)
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"], ctx=context)


def _sections_with(model: type[Settings], key: str) -> list[str]:
    """Keys of a model that stand for a section which has such a key."""
    return [
        name
        for name, field in model.model_fields.items()
        if (section := _section(field.annotation)) is not None and key in section.model_fields
    ]


def _is_left_out(model: type[Settings], key: str) -> bool:
    """Whether a key without a value may as well be left out: a section that needs no keys."""
    field = model.model_fields.get(key)
    if field is None or field.is_required():
        return False
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a key that is a section, one of a single kind that may be left out."""
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    is_one = len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel)
    return kinds[0] if is_one and get_origin(annotation) is not tuple else None
