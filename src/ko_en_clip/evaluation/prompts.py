"""Prompts from labels and templates, in Korean with the particle that fits the label."""

import re
from collections.abc import Sequence

from ..data.particles import attach_particle

# Where the label stands in a template, and in braces after it the two forms of a particle.
SLOT = re.compile(r"\{\}(?:\{(?P<particle>[^{}]+)\})?")


def fill_template(template: str, label: str) -> str:
    """A template with its label.

    Args:
        template: `{}` stands for the label; a particle's two forms may follow it in braces.
        label: a class name.

    Raises:
        ValueError: the template has no `{}`.

    Example:
        >>> fill_template("{}{을/를} 찍은 사진", "개"), fill_template("{}{을/를} 찍은 사진", "말")
        ('개를 찍은 사진', '말을 찍은 사진')
        >>> fill_template("a photo of a {}.", "dog")
        'a photo of a dog.'
    """
    if not SLOT.search(template):
        raise ValueError(f"template {template!r} has no {{}} for the label.")

    def fill(match: re.Match[str]) -> str:
        particle = match["particle"]
        return attach_particle(label, particle) if particle else label

    return SLOT.sub(fill, template)


def prompts_for(labels: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Every template filled with each label, a list a label."""
    return [[fill_template(template, label) for template in templates] for label in labels]
