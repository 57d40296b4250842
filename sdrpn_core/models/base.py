"""Adapter protocol: everything the pipeline asks of a multimodal LLM.

An adapter encodes images and lays out prompts; its ``decoder`` runs the layers. Two adapters,
threads or RPNs can share one model.

Shape legend: N batch, L sequence, d hidden size, T tokens of an image, K deepstack layers.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import cached_property
from textwrap import shorten
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_contracts.enums import Method
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import FamilyDefaults, ModelProfile
from sdrpn_core.decoding.decoder import Decoder
from sdrpn_core.decoding.step_pool import StepPool
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.decoder_check import unknown_layers_explained
from sdrpn_core.models.errors import ModelError, UnfitSetting
from sdrpn_core.models.generation_settings import suppressed_tokens
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.profile_checks import check_profile, check_texts
from sdrpn_core.models.prompts import ImageFeatures, Prompt, lay_out

log = logging.getLogger(__name__)

_SHOWN = 60
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""As tokenizers made by SentencePiece name them."""
_NO_MASKED_TOWER = (
    "mask_tower is for families with one fixed grid and a token for each patch (LLaVA, LLaVA-NeXT, "
    "LLaVA-OneVision, DeepSeek-VL 1.3B): leave it out"
)
_OF_GRADIENTS = frozenset({Method.VICROP_PURE_GRAD, Method.VICROP_PURE_GRAD_HIGH})
_NO_GRADIENTS = (
    "vicrop_pure_grad and vicrop_pure_grad_high are for families whose vision tower takes plain "
    "pixels (LLaVA, LLaVA-NeXT, LLaVA-OneVision, InternVL, Qianfan-OCR, Gemma 3, SmolVLM, Aya "
    "Vision): leave these methods out"
)


class ModelAdapter(ABC):
    """A frozen multimodal LLM, driven by the parts that every family shares."""

    defaults: ClassVar[FamilyDefaults]
    """For models of the family that have no profile yet."""
    masks_tower: ClassVar[bool] = False
    """Its vision tower can leave out what masked crops hide (``mask_tower`` of region settings)."""
    gives_gradients: ClassVar[bool] = False
    """Its vision tower takes plain pixels, which ``encode_with_gradient`` needs."""
    shows_images_whole: ClassVar[bool] = False
    """The multimodal model lets the tokens of an image see each other where its text model may."""
    image_text: ClassVar[str] = "{token}"
    """Stands for one image in a prompt: its token, between the markers that the stock processor or
    the chat template writes."""
    input_side: int
    """Side in pixels of the square that the model sees of one image (ViCrop's base crop)."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: ModelProfile,
        image_processor: BaseImageProcessor,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.profile = profile
        self.image_processor = image_processor
        self.resample = Image.Resampling(image_processor.resample)
        self.image_token_id = int(model.config.image_token_id)
        check_profile(
            profile, model.config.get_text_config(decoder=True), self.num_deepstack_layers
        )
        check_texts(profile, tokenizer, self.image_token_id)
        self._has_told_of_length = False

        with unknown_layers_explained(profile.model_id):
            self.decoder = Decoder(
                self.model,
                text_positions=self.text_positions,
                barred_tokens=(
                    self.image_token_id,
                    *suppressed_tokens(self.model.generation_config),
                ),
            )
        sees_whole = any(pattern.whole_images for pattern in self.decoder.patterns)
        if sees_whole and not self.shows_images_whole:
            raise ModelError(
                f"{profile.model_id}: its text model was made to see images whole, and a "
                f"{profile.family} model does not show them so: use a model with another text model"
            )
        self.step_pool = StepPool(self.decoder)
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Take from the model, its profile and its image processor what the family needs of them.

        Raises:
            ModelError: if they do not fit each other.
        """

    def with_profile(self, profile: ModelProfile) -> Self:
        """The same loaded model under another profile, for example once it is calibrated.

        Raises:
            ModelError: if the profile does not fit the model.
        """
        other = type(self)(self.model, self.tokenizer, profile, self.image_processor)
        other.decoder, other.step_pool = self.decoder, self.step_pool  # they belong to the model
        return other

    @property
    def device(self) -> torch.device:
        """Device of the decoder."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states."""
        return self.decoder.dtype

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        eos = self.model.generation_config.eos_token_id
        if eos is None:
            eos = self.tokenizer.eos_token_id
        return frozenset([eos] if isinstance(eos, int) else eos or [])

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that stand for one byte of a character, in vocabularies that have such."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return frozenset(vocabulary[token] for token in _BYTES if token in vocabulary)

    @property
    def repetition_penalty(self) -> float:
        """Divisor of the logits of tokens that prompt or answer hold already; 1 for none."""
        return float(self.model.generation_config.repetition_penalty or 1.0)

    @property
    def num_deepstack_layers(self) -> int:
        """K: the first decoder layers, after which image features are added once more."""
        return self.count_deepstack_layers(self.model.config)

    @staticmethod
    def count_deepstack_layers(config: PreTrainedConfig) -> int:
        """K of a model with this configuration."""
        del config
        return 0

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """What a text model of these sizes is like in the family, for rough plans: a Llama."""
        return LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
        )

    @classmethod
    def check_config(cls, config: PreTrainedConfig, model_id: str) -> None:
        """Refuse a model of the family that cannot be driven, before its weights are fetched.

        Args:
            config: that of the whole model.
            model_id: for messages.

        Raises:
            ModelError: saying why.
        """
        del config, model_id

    @abstractmethod
    def letterbox(self, image_size: tuple[int, int], *, for_labels: bool = False) -> Letterbox:
        """Placement of an image of this (width, height) on the model's canvas.

        Args:
            image_size: (width, height) in pixels.
            for_labels: as extraction and training see it rather than as answering does.
        """

    @abstractmethod
    def prepare_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> PreparedImages:
        """Place, resize and normalise upright RGB images; uses the host only.

        Args:
            images: of any sizes; at least one.
            for_labels: on the grid of extraction and training rather than that of answering; the
                same for families with one fixed grid.
        """

    @abstractmethod
    def prepare_crops(
        self, crops: Sequence[Image.Image], max_tokens: int | None = None
    ) -> PreparedImages:
        """Prepare crops, each for at most ``max_tokens`` tokens; None for as many as an image gets.

        Raises:
            ModelError: if that is too few for a single cell.
        """

    @abstractmethod
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """Run the vision tower once over prepared images; (T, d) tokens for each."""

    def encode_images(
        self, images: Sequence[Image.Image], *, for_labels: bool = False
    ) -> list[ImageFeatures]:
        """``prepare_images``, then ``encode_prepared``."""
        return self.encode_prepared(self.prepare_images(images, for_labels=for_labels))

    def encode_masked(
        self, prepared: PreparedImages, shown: Sequence[NDArray[np.bool_]]
    ) -> list[ImageFeatures]:
        """``encode_prepared``, but that the tower sees the shown cells of each image only.

        Args:
            prepared: images.
            shown: (h, w) of each image on its grid, at least one cell.

        Returns:
            Features; those of other cells stand for nothing.

        Raises:
            ModelError: for families that cannot.
        """
        del prepared, shown
        raise ModelError(_NO_MASKED_TOWER)

    def encode_with_gradient(self, image: Image.Image) -> tuple[Tensor, ImageFeatures]:
        """Encode one image so that gradients of its features reach its pixels.

        Returns:
            (1, 3, H, W) normalised pixels of the canvas, and the features made of them.

        Raises:
            ModelError: for families whose tower does not take plain pixels.
        """
        del image
        raise ModelError(_NO_GRADIENTS)

    @classmethod
    def num_tokens(cls, grid: GridShape) -> int:
        """Tokens of an image on a grid: its cells, and breaks in families that have such."""
        return grid.num_cells

    @classmethod
    def check_crop_tokens(cls, max_tokens: int | None) -> None:
        """Refuse a budget for crops that holds no cell.

        Raises:
            UnfitSetting: saying what would do.
        """
        least = cls.num_tokens(GridShape(1, 1))
        if max_tokens is not None and max_tokens < least:
            raise UnfitSetting(
                f"crop_tokens is {max_tokens}: give at least {least}, or leave it out"
            )

    @classmethod
    def check_regions(cls, regions: RegionSettings) -> None:
        """Refuse region settings that models of the family cannot follow.

        Raises:
            UnfitSetting: saying what would do.
        """
        cls.check_crop_tokens(regions.crop_tokens)
        if regions.mask_tower and not cls.masks_tower:
            raise UnfitSetting(_NO_MASKED_TOWER)

    @classmethod
    def check_methods(cls, methods: Collection[Method]) -> None:
        """Refuse ways of answering that models of the family cannot follow.

        Raises:
            UnfitSetting: saying what would do.
        """
        if not cls.gives_gradients and _OF_GRADIENTS.intersection(methods):
            raise UnfitSetting(_NO_GRADIENTS)

    def pixels_seen(self, image: ImageFeatures) -> tuple[int, int]:
        """(width, height) in pixels at which the vision tower got this image's canvas.

        A picture of no more pixels gains nothing from a crop. Families with dynamic grids or
        several towers override this.
        """
        del image
        return self.input_side, self.input_side

    def image_placeholder(self) -> str:
        """Prompt text that stands for one image."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return self.image_text.format(token=token)

    def image_placeholders(self, num_images: int) -> str:
        """Prompt text that stands for so many. Families that number images override this."""
        return self.image_placeholder() * num_images

    def position_ids(self, input_ids: Tensor, grids: Sequence[GridShape]) -> Tensor:
        """Rotary positions of one unpadded prompt; runs on the host.

        Args:
            input_ids: (L,) with image placeholders expanded.
            grids: grid of each image in order.

        Returns:
            (..., L) positions; plain text positions unless a family overrides this.
        """
        del grids
        return torch.arange(input_ids.shape[0], device=input_ids.device)

    @staticmethod
    def text_positions(positions: Tensor) -> Tensor:
        """(N, L) text positions -> rotary positions; multi-axis families repeat them per axis."""
        return positions

    def embed_prompt(self, question: str, images: Sequence[ImageFeatures]) -> Prompt:
        """Embed the profile's prompt for one question about one or more images.

        Args:
            question: question text, answer-style suffix included.
            images: the image, then its crops, in prompt order.

        Raises:
            ModelError: if the tokenizer does not turn placeholders into image tokens.
        """
        text = self.profile.prompt.replace("{images}", self.image_placeholders(len(images)))
        ids = self._tokens(text.replace("{question}", question))
        self._check_placeholders(ids, question, len(images))
        layout = lay_out(ids, self.image_token_id, images)
        grids = tuple(image.grid for image in images)
        # On the host: stock code that counts positions asks for one number after another.
        positions = self.position_ids(layout.ids, grids)
        self._tell_of_length(int(positions.max()) + 1, question)
        embeds = self.decoder.embedding(layout.ids[layout.columns].to(self.device))
        deepstack = embeds.new_zeros(self.num_deepstack_layers, *embeds.shape)
        numbers = torch.zeros(len(embeds), dtype=torch.int32)
        for number, (start, image) in enumerate(zip(layout.starts, images, strict=True), start=1):
            own, given = slice(start, start + image.num_tokens), image.given_tokens()
            numbers[own] = number
            embeds[own] = image.tokens[given].to(embeds.dtype)
            for level, features in enumerate(image.deepstack):
                deepstack[level, own] = features[given].to(embeds.dtype)
        return Prompt(
            embeds=embeds,
            deepstack=deepstack,
            position_ids=positions[..., layout.columns].to(self.device),
            image_numbers=numbers.to(self.device),
            image_starts=layout.starts,
            image_grids=grids,
            image_breaks=tuple(image.given_breaks for image in images),
            image_lengths=tuple(image.num_tokens for image in images),
            token_ids=tuple(sorted({*ids, *(one for image in images for one in image.break_ids)})),
            first_ids=tuple(ids[: min(layout.starts, default=0)]),
        )

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as it stands, without special ones around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def answer_tokens(self, answer: str, asked: str) -> tuple[int, ...]:
        """Tokens of an answer that somebody else gave, as the model itself would have said it.

        Chat templates that end a question with a colon ("Assistant:") have a space before the
        answer, which most tokenizers make part of its first token. After a line break or a marker
        ("<channel|>") they have none.

        Args:
            answer: as it stands; empty for none.
            asked: what comes before it, or the template of that.
        """
        if not asked.endswith(":") or not answer:
            return self.text_tokens(answer)
        before, whole = self.text_tokens(":"), self.text_tokens(f": {answer}")
        starts_alike = whole[: len(before)] == before
        return whole[len(before) :] if starts_alike else self.text_tokens(answer)

    def holds_placeholder(self, question: str) -> bool:
        """Whether a question spells the token that stands for images, and cannot be asked."""
        return self.image_token_id in self.text_tokens(question)

    def _tokens(self, prompt: str) -> list[int]:
        """With what begins a text once: some tokenizers put it there, others leave it to prompts.

        Gemma 3's does, Gemma 4's does not, and neither model works without it.
        """
        ids: list[int] = self.tokenizer(prompt).input_ids
        begin = self.tokenizer.bos_token_id
        return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids

    def _tell_of_length(self, num_positions: int, question: str) -> None:
        """Warn of a prompt that is longer than the model was made for, the first time; it is run
        all the same, as stock ``generate`` does."""
        config = self.model.config.get_text_config(decoder=True)
        most = getattr(config, "max_position_embeddings", None)
        if most is None or num_positions <= most or self._has_told_of_length:
            return
        self._has_told_of_length = True
        log.warning(
            "the prompt of %r takes %d positions, and %s was made for %d: what it makes of this "
            "and other such questions may mean nothing",
            shorten(question, _SHOWN),
            num_positions,
            self.profile.model_id,
            most,
        )

    def _check_placeholders(self, ids: Sequence[int], question: str, num_images: int) -> None:
        found = ids.count(self.image_token_id)
        if found > num_images:
            raise ModelError(f"the question contains the image placeholder: {question!r}")
        if found < num_images:
            raise ModelError(
                f"prompt of profile {self.profile.name!r} gave {found} image tokens for "
                f"{num_images} images; check its {{images}} field and the tokenizer"
            )
        if ids[-1] == self.image_token_id:  # regions are asked for by the last token
            raise ModelError(
                f"prompt of profile {self.profile.name!r} ends with the image: let text follow "
                "{images}, such as the question or what an answer begins with"
            )

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special tokens dropped."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
