"""Prompts of several kinds for the comparison with transformers."""

import textwrap
from pathlib import Path
from typing import Any

LICENSE = Path(__file__).parents[2] / "LICENSE"  # 11,000 characters of English

FRENCH = """\
Le train de nuit quitta la gare à vingt-deux heures précises, sous une pluie fine qui faisait briller les quais. Dans
le dernier wagon, une vieille dame déballait son dîner : du pain, un morceau de fromage, deux pommes et une bouteille
d'eau. Elle regarda longtemps par la fenêtre, où les lumières de la ville s'éloignaient l'une après l'autre, puis elle
demanda à son voisin s'il connaissait le village où elle était née. Il ne le connaissait pas. « C'est dommage, dit-elle,
car au printemps, quand les cerisiers sont en fleurs, il n'y a pas d'endroit plus beau au monde. » L'homme sourit et
promit d'y passer un jour. Au matin, les montagnes étaient là, bleues et blanches, et le contrôleur annonça le terminus.
Sur le quai, un enfant attendait avec un chien trop grand pour lui ; il tenait une pancarte où l'on avait écrit, à la
craie et de travers, le nom de sa grand-mère. Elle rit, posa sa valise, et ne regarda plus du tout le train.
"""

_TURNS = [
    ("system", "You are a patient teacher. Answer in one or two sentences."),
    ("user", "Why is the sky blue?"),
    ("assistant", "Air scatters short waves of light more than long ones, and blue light has short waves."),
    ("user", "And why is it red in the evening?"),
    ("assistant", "In the evening the light takes a longer way through the air, which leaves mostly the red."),
]


def conversation(turns: int) -> list[dict[str, str]]:
    """Messages of a chat, with questions that are all different."""
    asked = [("user", f"What is {n} times {n + 3}?") for n in range(turns)]
    answers = [("assistant", f"It is {n * (n + 3)}.") for n in range(turns)]
    return [
        {"role": role, "content": text}
        for role, text in [*_TURNS, *(turn for pair in zip(asked, answers, strict=True) for turn in pair)]
    ]


def texts(tokenizer: Any) -> list[str]:
    """A text of each kind, the shortest first; ``tokenizer`` has the model's chat template."""
    squares = ", ".join(f"{n}² = {n * n}" for n in range(1, 200))
    chat = tokenizer.apply_chat_template(conversation(20), tokenize=False, add_generation_prompt=True)
    code = Path(str(textwrap.__file__)).read_text()
    return [FRENCH, chat, squares, LICENSE.read_text(), code]


def cut(tokens: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """Prompts of these lengths, in turn from each kind's tokens, none overlapping another; the longest come first."""
    prompts, used = [], [0] * len(tokens)
    for index, length in reversed(list(enumerate(lengths))):
        kind = index % len(tokens)
        prompt = tokens[kind][used[kind] : used[kind] + length]
        assert len(prompt) == length, f"kind {kind} has no {length} tokens left"
        used[kind] += length
        prompts.append(prompt)
    return prompts
