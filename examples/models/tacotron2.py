"""Tacotron 2, the speech synthesis model of the paper for LJSpeech: from text to mel spectrograms.

Shen et al., Natural TTS synthesis by conditioning WaveNet on mel spectrogram predictions,
ICASSP 2018, in the sizes of the implementations in use. Padding never reaches the rest of a batch:
it is zero before every convolution, and no part of batch norm's means and variances.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import ConvNorm, xavier
from examples.models.tacotron2_decoder import (
    Decoder,
    DecoderDropout,
    DecoderSizes,
    EncodedText,
    Frames,
    lstm_cell,
)

_RELU_GAIN, _TANH_GAIN = 2**0.5, 5 / 3


@dataclass(frozen=True)
class Sizes:
    """The defaults are the usual ones.

    Attributes:
        symbols: number of characters.
        encoder_convs: number of convolutions of the encoder.
        postnet: channels of the postnet.
        postnet_convs: number of convolutions of the postnet.
        filter_size: of the convolutions of encoder and postnet.
        decoder: of the decoder; `decoder.text`, even, is the size of all vectors of the encoder.
    """

    symbols: int = 148
    encoder_convs: int = 3
    postnet: int = 512
    postnet_convs: int = 5
    filter_size: int = 5
    decoder: DecoderSizes = field(default_factory=DecoderSizes)


@dataclass(frozen=True)
class Dropout:
    """Rates; `convs` is that of the convolutions of encoder and postnet."""

    convs: float = 0.5
    decoder: DecoderDropout = field(default_factory=DecoderDropout)


class Speech(NamedTuple):
    """What the model says, 0 in the padding.

    Attributes:
        mel: log mel spectrogram of the decoder, (n, frames, mels) in float32.
        refined: the same after the postnet.
        gate: logits of "this frame is the last", (n, frames) in float32.
        alignments: attention weights, (n, frames, symbols) in float32.
    """

    mel: jax.Array
    refined: jax.Array
    gate: jax.Array
    alignments: jax.Array


class Recording(NamedTuple):
    """True speech.

    Attributes:
        mels: log mel spectrogram (n, frames, mels).
        lengths: number of frames of each, (n,); the rest is padding.
    """

    mels: jax.Array
    lengths: jax.Array


class SpeechLoss(NamedTuple):
    """Per text (n,), means over its frames without the padding.

    Attributes:
        mel: squared error before the postnet.
        refined: squared error after it.
        gate: cross-entropy of the gate.
    """

    mel: jax.Array
    refined: jax.Array
    gate: jax.Array

    @property
    def total(self) -> jax.Array:
        """The sum of the three, which is trained on, (n,)."""
        return self.mel + self.refined + self.gate


class Encoder(nnx.Module):
    """Symbol embedding, convolutions, and an LSTM in each direction.

    Args:
        sizes: of the model.
        rate: of the dropout after each convolution.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self, sizes: Sizes, rate: float, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        features = sizes.decoder.text
        if features % 2:
            raise ValueError(f"decoder.text must be even, got {features}.")
        self.dtype = jnp.float32 if dtype is None else dtype
        self.embedding = nnx.Embed(
            sizes.symbols, features, embedding_init=xavier(1.0), dtype=dtype, rngs=rngs
        )
        self.convs = nnx.List(
            [
                ConvNorm(
                    features,
                    features,
                    (sizes.filter_size,),
                    kernel_init=xavier(_RELU_GAIN),
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(sizes.encoder_convs)
            ]
        )
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.forward, self.backward = (
            nnx.RNN(
                lstm_cell(features, features // 2, dtype=dtype, rngs=rngs),
                reverse=reverse,
                keep_order=True,
                rngs=False,
            )
            for reverse in (False, True)
        )

    def __call__(self, text: jax.Array, lengths: jax.Array) -> jax.Array:
        """Symbols (n, symbols) and their numbers (n,) -> (n, symbols, text), 0 in the padding."""
        mask = within(lengths, text.shape[1])[..., None]
        x = jnp.where(mask, self.embedding(text), 0)
        for conv in self.convs:
            x = jnp.where(mask, self.dropout(nnx.relu(conv(x, mask))), 0)
        zeros = jnp.zeros((x.shape[0], x.shape[-1] // 2), self.dtype)
        directions = [
            lstm(x, initial_carry=(zeros, zeros), seq_lengths=lengths)
            for lstm in (self.forward, self.backward)
        ]
        return jnp.where(mask, jnp.concatenate(directions, axis=-1), 0)


class Postnet(nnx.Module):
    """Convolutions with tanh between them that correct a whole spectrogram.

    Args:
        sizes: of the model.
        rate: of the dropout after each convolution.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self, sizes: Sizes, rate: float, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        mels, inner = sizes.decoder.mels, [sizes.postnet] * (sizes.postnet_convs - 1)
        gains = [_TANH_GAIN] * len(inner) + [1.0]
        self.convs = nnx.List(
            [
                ConvNorm(
                    inputs,
                    outputs,
                    (sizes.filter_size,),
                    kernel_init=xavier(gain),
                    dtype=dtype,
                    rngs=rngs,
                )
                for inputs, outputs, gain in zip([mels, *inner], [*inner, mels], gains, strict=True)
            ]
        )
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, mel: jax.Array, mask: jax.Array) -> jax.Array:
        """Corrections (n, frames, mels) in float32, for a spectrogram that is 0 in the padding.

        Args:
            mel: (n, frames, mels).
            mask: booleans (n, frames, 1), false in the padding.
        """
        x = mel
        for conv in self.convs[:-1]:
            x = jnp.where(mask, self.dropout(jnp.tanh(conv(x, mask))), 0)
        x = self.dropout(self.convs[-1](x, mask))
        return jnp.where(mask, x, 0).astype(jnp.float32)


class Tacotron2(nnx.Module):
    """Encoder, decoder, postnet.

    Args:
        sizes: of its parts.
        dropout: rates.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.

    Raises:
        ValueError: for an odd `sizes.decoder.text`.
    """

    def __init__(
        self,
        sizes: Sizes | None = None,
        *,
        dropout: Dropout | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        sizes, dropout = sizes or Sizes(), dropout or Dropout()
        self.encoder = Encoder(sizes, dropout.convs, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(sizes.decoder, dropout.decoder, dtype=dtype, rngs=rngs)
        self.postnet = Postnet(sizes, dropout.convs, dtype=dtype, rngs=rngs)

    def __call__(self, text: jax.Array, text_lengths: jax.Array, recording: Recording) -> Speech:
        """Every frame from the true frames before it: what training needs.

        Args:
            text: symbols (n, symbols).
            text_lengths: number of symbols of each text (n,), at least 1; the rest is padding.
            recording: the true speech.
        """
        frames = self.decoder(self._encoded(text, text_lengths), recording.mels)
        return self._refined(frames, recording.lengths)

    def generate(
        self,
        text: jax.Array,
        text_lengths: jax.Array,
        key: jax.Array,
        *,
        max_frames: int = 1000,
        threshold: float = 0.5,
    ) -> tuple[Speech, jax.Array]:
        """Every frame from the generated frames before it; after `model.eval()`.

        Args:
            text: symbols (n, symbols).
            text_lengths: number of symbols of each text (n,), at least 1; the rest is padding.
            key: for the dropout of the prenet, which is always on.
            max_frames: at most so many frames.
            threshold: a text is done with the first frame by which the gate gives it this
                probability to be, 1 - prod(1 - p_t), p_t that frame t is the last one if none
                before was; with 1/2 its length is the median. 1 never ends it.

        Returns:
            Speech, and the number of frames of each text (n,).
        """
        encoded = self._encoded(text, text_lengths)
        frames, lengths = self.decoder.generate(encoded, key, max_frames, threshold)
        return self._refined(frames, lengths), lengths

    def _encoded(self, text: jax.Array, lengths: jax.Array) -> EncodedText:
        return self.decoder.encoded(self.encoder(text, lengths), within(lengths, text.shape[1]))

    def _refined(self, frames: Frames, lengths: jax.Array) -> Speech:
        mask = within(lengths, frames.mel.shape[1])
        mel = jnp.where(mask[..., None], frames.mel, 0.0)
        refined = mel + self.postnet(mel, mask[..., None])
        alignments = jnp.where(mask[..., None], frames.alignments, 0.0)
        return Speech(mel, refined, jnp.where(mask, frames.gate, 0.0), alignments)


def speech_loss(speech: Speech, target: Recording) -> SpeechLoss:
    """Squared errors of both spectrograms and the cross-entropy of the gate, without the padding.

    The gate is to be 1 at the last frame and 0 before.
    """
    frames = target.mels.shape[1]
    mask = within(target.lengths, frames)
    is_last = (jnp.arange(frames) == target.lengths[:, None] - 1).astype(jnp.float32)

    def per_text(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, x, 0.0), axis=-1) / target.lengths

    return SpeechLoss(
        per_text(jnp.mean((speech.mel - target.mels) ** 2, axis=-1)),
        per_text(jnp.mean((speech.refined - target.mels) ** 2, axis=-1)),
        per_text(optax.sigmoid_binary_cross_entropy(speech.gate, is_last)),
    )


def within(lengths: jax.Array, size: int) -> jax.Array:
    """Booleans (n, size): true at the first `lengths` positions."""
    return jnp.arange(size) < lengths[:, None]
