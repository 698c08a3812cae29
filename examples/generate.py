"""Text or speech from a trained model: `python -m examples.generate RUN_DIR ...`.

RUN_DIR is the output folder of a run of `examples.train` with checkpoints; the last one is taken. A
language model writes `generated.txt`, Tacotron 2 `generated.wav` and `alignment.png`, both there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from examples import language, plots, speech
from examples.checkpoint import Checkpoints, last_run
from examples.command import run_command
from examples.data.audio import write_sound
from examples.data.ljspeech import SYMBOLS, encode
from examples.data.pipeline import iterate
from examples.data.wikitext import END, UNKNOWN
from examples.griffin_lim import sound_from_mel
from examples.models.tacotron2 import Speech, Tacotron2
from examples.models.transformer_xl import TransformerXL
from examples.parallel import ONE_DEVICE
from examples.recipe import RecipeError, Run
from examples.task import make_task


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 if what was asked for is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.generate",
        description="Let a trained model write or speak.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="output folder of a run")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the data that the run was given"
    )
    parser.add_argument(
        "--iterate",
        choices=("structured", "W"),
        default="structured",
        help="the point to deploy, or the training iterate (default: structured)",
    )
    parser.add_argument(
        "--text",
        help="what the written text goes on from (default: the start of a text), or what is said "
        "(default: a test recording's text, and the recording is compared with)",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=200,
        metavar="N",
        help="words to write, or the most frames to speak (default: 200)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="of the words drawn: near 0 the likeliest only (default: 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _generate(options, Console()))


def _generate(options: argparse.Namespace, console: Console) -> int:
    if options.length < 1:
        raise RecipeError(f"--length: expected at least 1, got {options.length}")
    if not options.temperature > 0:
        raise RecipeError(f"--temperature: expected a number above 0, got {options.temperature}")
    run = last_run(options.run)
    model = trained_model(options.run, run, options.iterate == "structured")
    if isinstance(model, TransformerXL):
        write(run, model, options, console)
    elif isinstance(model, Tacotron2):
        speak(run, model, options, console)
    else:
        raise RecipeError(f"{run.recipe.name}: expected a model of text or speech")
    return 0


def trained_model(out: Path, run: Run, structured: bool) -> nnx.Module:
    """The model of the last checkpoint, in evaluation mode.

    Args:
        out: the run's folder.
        run: what the checkpoint is of.
        structured: whether to take the point to deploy, or the training iterate.
    """
    task, seed = make_task(run, 1, ONE_DEVICE), run.settings.seed
    with Checkpoints(out, run, seed, resume=True) as checkpoints:
        restored = checkpoints.restore(task.start(seed))
    assert restored
    state = restored[0]
    params = task.structured(state.opt_state, state.params) if structured else state.params
    return nnx.merge(task.eval_graph, params, state.model_state)


def write(run: Run, model: TransformerXL, options: argparse.Namespace, console: Console) -> None:
    """Draws words, shows them and leaves them in `generated.txt`."""
    load: Any = run.recipe.load
    vocabulary = load(options.data_dir).vocabulary
    numbers = {word: number for number, word in enumerate(vocabulary)}
    prompt = [END, *load.tokens(options.text or "")]
    unknown = [word for word in prompt if word not in numbers]
    if unknown:
        raise RecipeError(
            f"--text: expected words of the vocabulary, got {', '.join(map(repr, unknown))}"
        )
    words = language.sample(
        model,
        [numbers[word] for word in prompt],
        options.length,
        jax.random.key(options.seed),
        options.temperature,
        # What stands for rare words is none, nor are the numbers that the data has no words for.
        never=[
            number
            for number in range(model.vocabulary.bounds[-1])
            if number >= len(vocabulary) or vocabulary[number] == UNKNOWN
        ],
    )
    text = " ".join([*prompt[1:], *(vocabulary[word] for word in words)])
    text = text.replace(f" {END} ", "\n").replace(END, "").strip()
    (options.run / "generated.txt").write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"generated.txt is in {options.run}", soft_wrap=True)


def speak(run: Run, model: Tacotron2, options: argparse.Namespace, console: Console) -> None:
    """Says a text, leaves sound and alignment, and compares with the recording where there is one."""
    load: Any = run.recipe.load
    if options.text is None:
        recording = next(iterate(load(options.data_dir).test(1), 0)).inputs
        symbols = recording.text[0, : recording.text_lengths[0]]
        true = recording.mels[0, : recording.mel_lengths[0]]
    else:
        symbols, true = encode(options.text), None
    spoken = say(model, symbols, options.length, options.seed)
    mel, alignments = np.asarray(spoken.refined), np.asarray(spoken.alignments)
    write_sound(options.run / "generated.wav", sound_from_mel(mel, load.audio), load.audio)
    diagonality = speech.diagonality(
        jnp.asarray(alignments)[None], jnp.array([len(mel)]), jnp.array([len(symbols)])
    )[0]
    text = "".join(SYMBOLS[symbol] for symbol in symbols)
    title = f"diagonality {diagonality:.2f}"
    plots.plot_alignment(options.run / "alignment.png", alignments, text, title)
    seconds = len(mel) * load.audio.hop / load.audio.sample_rate
    console.print(f"{text[:-1]!r}: {len(mel)} frames, {seconds:.1f} s, {title}", soft_wrap=True)
    if true is not None:
        console.print(
            f"the recording: {len(true)} frames; mel distance to it after warping: "
            f"{speech.warped_distance(mel, true):.3f}",
            soft_wrap=True,
        )
    console.print(f"generated.wav and alignment.png are in {options.run}", soft_wrap=True)


def say(model: Tacotron2, symbols: np.ndarray, most: int, seed: int) -> Speech:
    """One text spoken, without a batch axis and padding.

    Args:
        model: in evaluation mode.
        symbols: of the text (k,).
        most: at most so many frames.
        seed: of the prenet's dropout.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def spoken(state: nnx.State) -> tuple[Speech, jax.Array]:
        return nnx.merge(graph, state).generate(
            jnp.asarray(symbols)[None],
            jnp.array([len(symbols)]),
            jax.random.key(seed),
            max_frames=most,
        )

    speech_, lengths = spoken(state)
    return jax.tree.map(lambda x: x[0, : lengths[0]], speech_)


if __name__ == "__main__":
    sys.exit(main())
