"""What a recipe says of changes to radiographs: the ranges that augmenting.py draws from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class Augmentation(BaseModel):
    """Ranges from which each radiograph of a batch gets its own draw; the defaults change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="share of the picture that a crop keeps; >1: zooms out"
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field((1.0, 1.0), description="width over height of a crop")
    degrees: float = Field(0.0, ge=0, le=45, description="largest rotation either way")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    border: float = Field(0.0, ge=0, lt=0.5, description="largest share of the side covered in black, on each edge")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest shift, as a share of full scale")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest change of the factor around the mean")
    gamma: float = Field(0.0, ge=0, lt=2, description="largest natural logarithm of the exponent, either way")
    blur: float = Field(0.0, ge=0, le=4, description="largest standard deviation in pixels")
    noise: float = Field(0.0, ge=0, lt=1, description="largest standard deviation, as a share of full scale")

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        return self.area != (1.0, 1.0) or self.ratio != (1.0, 1.0) or self.degrees > 0 or self.flip > 0
