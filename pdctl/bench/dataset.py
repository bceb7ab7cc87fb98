"""The prompts of a benchmark: synthetic words, or lines of a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from pdctl.errors import ExitCode, PdctlError


class DatasetError(PdctlError):
    """The file of prompts cannot be used."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks for."""

    text: str
    output_tokens: int


class Dataset(Protocol):
    """Gives the prompt of each request; the same one for the same index."""

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of request ``index``; warm-up requests have negative indexes."""


@dataclass(frozen=True)
class SyntheticDataset:
    """Random words, about one token each: no prompt begins like another, so a prefix cache does not serve them.

    The true number of prompt tokens depends on the tokenizer and the chat template: the server's usage tells it.
    """

    input_tokens: int
    output_tokens: int
    seed: int

    def prompt(self, index: int) -> Prompt:
        """Return ``input_tokens`` words that depend on their number, the seed and ``index`` only."""
        words = Random(f"{self.seed}/{self.input_tokens}/{index}").choices(_WORDS, k=self.input_tokens)
        return Prompt(" ".join(words), self.output_tokens)


@dataclass(frozen=True)
class FileDataset:
    """Prompts of a file in their order, from the start again when they are used up."""

    prompts: tuple[Prompt, ...]

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of line ``index``, counted around."""
        return self.prompts[index % len(self.prompts)]


def load_prompts(path: Path, output_tokens: int) -> FileDataset:
    """Read one prompt a line: text, or in a ``.jsonl`` file ``{"prompt": str, "output_tokens": int (optional)}``."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut at U+2028, which JSON allows
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the prompts in {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DatasetError(f"there is no prompt in {path}: write one a line")
    if path.suffix != ".jsonl":
        return FileDataset(tuple(Prompt(line.rstrip("\r"), output_tokens) for _, line in numbered))
    return FileDataset(tuple(_from_json(line, f"{path}:{number}", output_tokens) for number, line in numbered))


def _from_json(line: str, where: str, output_tokens: int) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    text = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise DatasetError(f'{where}: each line must be an object with a "prompt" text')
    tokens = entry.get("output_tokens", output_tokens)
    if type(tokens) is not int or tokens < 1:
        raise DatasetError(f'{where}: "output_tokens" must be a whole number of at least 1, not {tokens!r}')
    return Prompt(text, tokens)


# Short, common words: nearly every tokenizer has each as one token.
_WORD_LIST = """
able about after again air all also always among animal answer area around ask away back base be bear beauty bed
before began begin best better between big bird black blue boat body book both box boy bring brought build busy
call came car care carry cause center certain change check children city class clear close cold color come common
complete contain correct cost could country course cover cross cut dark day decide deep develop differ direct do
dog door down draw drive dry during each early earth east eat end enough even ever every example eye face fact
fall family far farm fast father feel feet few field figure fill final find fire first fish five fly follow food
foot force form found four free friend from front full game gave general girl give go gold good got govern great
green ground group grow half hand happen hard have head hear heat help here high hold home horse hot hour house
hundred idea inch interest island join keep kind king knew know land language large last late laugh lead learn
leave left less letter life light like line list listen little live long look love low machine made main make man
many map mark mean measure men might mile mind minute miss money moon more morning most mother mountain move much
music name near need never new next night north note nothing notice noun now number object ocean of off often old
once one only open order other out over own page paper part pass pattern people person picture piece place plain
plan plane plant play point port pose possible pound power press problem produce product pull put question quick
rain ran reach read ready real record red remember rest right river road rock room round rule run said same saw
school science sea second see seem self sentence serve set several shape ship short should show side simple since
sing sit six size sleep slow small snow some song soon sound south special spell stand star start state stay step
still stood stop story street strong study such sun sure surface table tail take talk teach tell ten test thing
think those thought thousand three through time together told too took top toward town travel tree true try turn
two under unit until use usual very voice vowel walk want war warm watch water wave way week weight well went west
wheel where while white whole why wind wonder wood word work world write year young
"""
_WORDS = tuple(_WORD_LIST.split())
