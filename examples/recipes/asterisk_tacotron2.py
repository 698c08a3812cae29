"""Tacotron 2 on the voice of the Asterisk telephone exchange: real speech that a package holds, 24
minutes at 8 kHz, where LJSpeech has 24 hours at 22 kHz. Losses of the two do not compare.

So little speech does not teach the attention where to look: the loss guides it, unlike the paper's,
which is reported as `speech_loss`.
"""

from dataclasses import replace

from examples import speech
from examples.data.asterisk import AsteriskSounds
from examples.recipes import ljspeech_tacotron2

RECIPE = replace(
    ljspeech_tacotron2.RECIPE,
    name="asterisk_tacotron2",
    title="Tacotron 2 on the Asterisk voice, group lasso over inputs",
    load=AsteriskSounds(),
    loss=speech.guided_loss,
    metrics={"speech_loss": speech.loss, **ljspeech_tacotron2.RECIPE.metrics},
    headline_figure="speech_loss",
    scales={
        "small": {
            **ljspeech_tacotron2.SMALL,
            "data.max_seconds": 2.0,
            "data.audio.hop": 160,
            "data.test_clips": 32,
        },
        "smoke": {**ljspeech_tacotron2.SMOKE, "data.max_seconds": 1.0},
    },
)
