"""The decoder of Tacotron 2: from an encoded text to mel frames, one frame after the other.

Shen et al., ICASSP 2018; location-sensitive attention: Chorowski et al., NeurIPS 2015. The energy of
text position j for frame t is

    e_j = w . tanh(W s_t + V h_j + U f_{t,j}),

s_t the state of the attention LSTM, h_j the encoded text, f_t a convolution of the last attention
weights and of the sum of all before.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import xavier

_TANH_GAIN = 5 / 3


@dataclass(frozen=True)
class DecoderSizes:
    """The defaults are the usual ones; LSTM states are 1024 numbers, frames 80 mel channels."""

    text: int = 512
    mels: int = 80
    prenet: int = 256
    attention_state: int = 1024
    decoder_state: int = 1024
    attention: int = 128
    location_filters: int = 32
    location_filter_size: int = 31


@dataclass(frozen=True)
class DecoderDropout:
    """Rates; that of the prenet applies when generating, too."""

    prenet: float = 0.5
    attention_state: float = 0.1
    decoder_state: float = 0.1


class EncodedText(NamedTuple):
    """What the attention reads.

    Attributes:
        vectors: (n, symbols, text).
        keys: V h, (n, symbols, attention).
        mask: booleans (n, symbols), false in the padding.
    """

    vectors: jax.Array
    keys: jax.Array
    mask: jax.Array


class DecoderState(NamedTuple):
    """What one frame passes to the next.

    Attributes:
        attention_lstm: cell and output of the attention LSTM, (n, attention_state) each.
        decoder_lstm: cell and output of the decoder LSTM, (n, decoder_state) each.
        context: text read for the last frame, (n, text).
        weights: attention weights of the last frame, (n, symbols) in float32.
        cumulative: sum of the weights of all frames so far, (n, symbols) in float32.
    """

    attention_lstm: tuple[jax.Array, jax.Array]
    decoder_lstm: tuple[jax.Array, jax.Array]
    context: jax.Array
    weights: jax.Array
    cumulative: jax.Array


class Frames(NamedTuple):
    """What the decoder says.

    Attributes:
        mel: (n, frames, mels) in float32.
        gate: logits of "this frame is the last", (n, frames) in float32.
        alignments: attention weights, (n, frames, symbols) in float32.
    """

    mel: jax.Array
    gate: jax.Array
    alignments: jax.Array


def lstm_cell(
    inputs: int, state: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
) -> nnx.OptimizedLSTMCell:
    """An LSTM cell whose parameters start uniform on +-1/sqrt(state)."""

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(state**-0.5), state**-0.5)

    return nnx.OptimizedLSTMCell(
        inputs,
        state,
        kernel_init=uniform,
        recurrent_kernel_init=uniform,
        bias_init=uniform,
        dtype=dtype,
        rngs=rngs,
    )


class LocationAttention(nnx.Module):
    """Attention that sees where it has been.

    Args:
        sizes: of the decoder.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(self, sizes: DecoderSizes, *, dtype: DTypeLike | None, rngs: nnx.Rngs) -> None:
        def dense(inputs: int, outputs: int, gain: float) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=False, dtype=dtype, kernel_init=xavier(gain), rngs=rngs
            )

        self.query = dense(sizes.attention_state, sizes.attention, _TANH_GAIN)
        self.key = dense(sizes.text, sizes.attention, _TANH_GAIN)
        self.location = nnx.Conv(
            2,
            sizes.location_filters,
            (sizes.location_filter_size,),
            use_bias=False,
            dtype=dtype,
            kernel_init=xavier(1.0),
            rngs=rngs,
        )
        self.location_key = dense(sizes.location_filters, sizes.attention, _TANH_GAIN)
        self.energy = dense(sizes.attention, 1, 1.0)

    def __call__(
        self, query: jax.Array, text: EncodedText, weights: jax.Array, cumulative: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What is read and with which weights.

        Args:
            query: (n, attention_state).
            text: encoded text.
            weights: of the last frame, (n, symbols).
            cumulative: sum of the weights of all frames before, (n, symbols).

        Returns:
            The context (n, text), and the weights (n, symbols): 0 in the padding, with sum 1.
        """
        seen = self.location_key(self.location(jnp.stack([weights, cumulative], axis=-1)))
        mixed = jnp.tanh(self.query(query)[:, None] + text.keys + seen)
        energies = self.energy(mixed)[..., 0].astype(jnp.float32)
        new = jax.nn.softmax(jnp.where(text.mask, energies, -jnp.inf), axis=-1)
        context = jnp.einsum("ns,nsd->nd", new.astype(text.vectors.dtype), text.vectors)
        return context, new


class Prenet(nnx.Module):
    """Two dense layers with ReLU and dropout that is always on: it keeps the decoder from merely
    copying the frame before, and gives generated speech its variation.

    Args:
        inputs: size of a frame.
        features: units of both layers.
        rate: of the dropout.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self, inputs: int, features: int, rate: float, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        self.layers = nnx.List(
            [
                nnx.Linear(
                    size, features, use_bias=False, dtype=dtype, kernel_init=xavier(1.0), rngs=rngs
                )
                for size in (inputs, features)
            ]
        )
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, frames: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(..., inputs) -> (..., features); `key` instead of the module's own random stream."""
        x = frames
        for i, layer in enumerate(self.layers):
            layer_key = None if key is None else jax.random.fold_in(key, i)
            x = self.dropout(nnx.relu(layer(x)), deterministic=False, rngs=layer_key)
        return x


class Decoder(nnx.Module):
    """Prenet, attention LSTM, attention, decoder LSTM, and dense layers to a frame and its gate.

    Args:
        sizes: of its parts.
        dropout: rates.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        dropout: DecoderDropout,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.sizes, self.dtype = sizes, jnp.float32 if dtype is None else dtype
        self.prenet = Prenet(sizes.mels, sizes.prenet, dropout.prenet, dtype=dtype, rngs=rngs)
        self.attention = LocationAttention(sizes, dtype=dtype, rngs=rngs)
        self.attention_lstm = lstm_cell(
            sizes.prenet + sizes.text, sizes.attention_state, dtype=dtype, rngs=rngs
        )
        self.decoder_lstm = lstm_cell(
            sizes.attention_state + sizes.text, sizes.decoder_state, dtype=dtype, rngs=rngs
        )
        features = sizes.decoder_state + sizes.text
        self.frame = nnx.Linear(
            features, sizes.mels, dtype=dtype, kernel_init=xavier(1.0), rngs=rngs
        )
        self.gate = nnx.Linear(features, 1, dtype=dtype, kernel_init=xavier(1.0), rngs=rngs)
        self.attention_dropout = nnx.Dropout(dropout.attention_state)
        self.decoder_dropout = nnx.Dropout(dropout.decoder_state)
        self.keys = rngs.dropout.fork()

    def encoded(self, vectors: jax.Array, mask: jax.Array) -> EncodedText:
        """The text with what the attention needs of it at every frame."""
        return EncodedText(vectors, self.attention.key(vectors), mask)

    def start(self, text: EncodedText) -> DecoderState:
        """The state before the first frame: zero."""
        count, symbols, _ = text.vectors.shape
        attention = jnp.zeros((count, self.sizes.attention_state), self.dtype)
        decoder = jnp.zeros((count, self.sizes.decoder_state), self.dtype)
        weights = jnp.zeros((count, symbols), jnp.float32)
        context = jnp.zeros((count, self.sizes.text), self.dtype)
        return DecoderState((attention, attention), (decoder, decoder), context, weights, weights)

    def step(
        self, state: DecoderState, x: jax.Array, text: EncodedText, key: jax.Array
    ) -> tuple[DecoderState, jax.Array]:
        """One frame.

        Args:
            state: after the frame before.
            x: the frame before, after the prenet, (n, prenet).
            text: encoded text.
            key: for dropout.

        Returns:
            The new state, and what the frame is read from, (n, decoder_state + text).
        """
        attention_key, decoder_key = jax.random.split(key)
        (cell, _), query = self.attention_lstm(
            state.attention_lstm, jnp.concatenate([x, state.context], axis=-1)
        )
        query = self.attention_dropout(query, rngs=attention_key)
        attention_lstm = (cell, query)
        context, weights = self.attention(query, text, state.weights, state.cumulative)
        (cell, _), output = self.decoder_lstm(
            state.decoder_lstm, jnp.concatenate([query, context], axis=-1)
        )
        output = self.decoder_dropout(output, rngs=decoder_key)
        state = DecoderState(
            attention_lstm, (cell, output), context, weights, state.cumulative + weights
        )
        return state, jnp.concatenate([output, context], axis=-1)

    def read(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(..., decoder_state + text) -> frames (..., mels) and gate logits (...), in float32."""
        frame, gate = self.frame(features), self.gate(features)[..., 0]
        return frame.astype(jnp.float32), gate.astype(jnp.float32)

    def __call__(self, text: EncodedText, mels: jax.Array) -> Frames:
        """Every frame from the true frames before it (teacher forcing).

        Args:
            text: encoded text.
            mels: true frames (n, frames, mels).
        """
        before = jnp.pad(mels[:, :-1], ((0, 0), (1, 0), (0, 0)))
        inputs = self.prenet(before).swapaxes(0, 1)
        keys = jax.random.split(self.keys(), len(inputs))

        def body(
            state: DecoderState, at_frame: tuple[jax.Array, jax.Array]
        ) -> tuple[DecoderState, tuple[jax.Array, jax.Array]]:
            state, features = self.step(state, at_frame[0], text, at_frame[1])
            return state, (features, state.weights)

        _, (features, weights) = jax.lax.scan(body, self.start(text), (inputs, keys))
        frames, gate = self.read(features.swapaxes(0, 1))
        return Frames(frames, gate, weights.swapaxes(0, 1))

    def generate(
        self, text: EncodedText, key: jax.Array, max_frames: int, threshold: float
    ) -> tuple[Frames, jax.Array]:
        """Every frame from the generated frames before it.

        Args:
            text: encoded text.
            key: for dropout.
            max_frames: at most so many frames.
            threshold: see `Tacotron2.generate`.

        Returns:
            Frames, 0 after the last of a text, and the number of frames of each text (n,).
        """
        count, symbols, _ = text.vectors.shape
        frames = Frames(
            jnp.zeros((count, max_frames, self.sizes.mels)),
            jnp.zeros((count, max_frames)),
            jnp.zeros((count, max_frames, symbols)),
        )
        lengths = jnp.full(count, max_frames, jnp.int32)
        last = jnp.zeros((count, self.sizes.mels))

        def unfinished(loop: _Generation) -> jax.Array:
            return (loop.step < max_frames) & jnp.any(loop.step < loop.lengths)

        def body(loop: _Generation) -> _Generation:
            prenet_key, step_key = jax.random.split(jax.random.fold_in(key, loop.step))
            x = self.prenet(loop.last, prenet_key)
            state, features = self.step(loop.state, x, text, step_key)
            frame, gate = self.read(features)
            going = loop.step < loop.lengths
            written = _write(loop.frames, loop.step, Frames(frame, gate, state.weights), going)
            hazard = loop.hazard + jax.nn.softplus(gate)
            stops = going & (1 - jnp.exp(-hazard) > threshold)
            lengths = jnp.where(stops, loop.step + 1, loop.lengths)
            return _Generation(loop.step + 1, state, frame, hazard, written, lengths)

        hazard = jnp.zeros(count)
        loop = _Generation(jnp.int32(0), self.start(text), last, hazard, frames, lengths)
        loop = jax.lax.while_loop(unfinished, body, loop)
        return loop.frames, loop.lengths


class _Generation(NamedTuple):
    """What the loop of `Decoder.generate` carries: `hazard` is -log P(not done yet), and `lengths`
    the maximum until a text stops."""

    step: jax.Array
    state: DecoderState
    last: jax.Array
    hazard: jax.Array
    frames: Frames
    lengths: jax.Array


def _write(frames: Frames, step: jax.Array, new: Frames, going: jax.Array) -> Frames:
    """Frames with those of one step entered for the texts that go on; `new` has no frame axis."""

    def enter(everything: jax.Array, value: jax.Array) -> jax.Array:
        chosen = going.reshape(-1, *[1] * (value.ndim - 1))
        return everything.at[:, step].set(jnp.where(chosen, value, 0.0))

    return jax.tree.map(enter, frames, new)
