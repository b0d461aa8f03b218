"""The training programs: `tinynet train NAME`, and the scripts of examples/ with the same options."""

from __future__ import annotations

# By the name on the command line: the module, whose `main` runs the program, and what it trains.
PROGRAMS = {
    "image-classifier": ("tinynet.programs.image_classifier", "classify images, by default handwritten digits"),
    "name-classifier": ("tinynet.programs.name_classifier", "classify surnames by language"),
    "text-model": ("tinynet.programs.text_model", "predict the next character of a text"),
    "forecaster": ("tinynet.programs.forecaster", "forecast the next year's sunspots"),
}
