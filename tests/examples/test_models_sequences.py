"""Transformer-XL and Tacotron 2: the published sizes, and what their structure promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples import language
from examples.models import tacotron2, transformer_xl
from examples.models.tacotron2_decoder import DecoderSizes
from examples.recipes import RECIPES


def count(recipe):
    model = nnx.eval_shape(lambda: RECIPES[recipe].model(nnx.Rngs(0), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_transformer_xl_has_the_published_number_of_parameters():
    """NVIDIA's base model for WikiText-103, the one with d 512: 192 million."""
    words, features, hidden = 267_735, 512, 2048
    attention = features * 3 * features + 2 * features * features  # q, k, v; distances; output
    dense = features * hidden + hidden + hidden * features + features
    layer = attention + dense + 2 * (2 * features)
    softmax = words * features + words + 3 * (features + 1)  # three tail clusters
    assert count("wikitext_transformer_xl") == 16 * layer + softmax + 2 * features == 191_950_298


def test_tacotron_2_has_the_published_number_of_parameters_but_for_biases_that_do_nothing():
    """28,193,153 in NVIDIA's: two biases that are only ever added up in each LSTM, and biases of
    convolutions whose batch norm subtracts them again; here is one, and none."""
    second_lstm_biases = 2 * 4 * 256 + 4 * 1024 + 4 * 1024
    biases_before_norms = 3 * 512 + 4 * 512 + 80
    ours = count("ljspeech_tacotron2")
    assert ours + second_lstm_biases + biases_before_norms == 28_193_153
    assert ours == 28_179_249


# Transformer-XL


def filled(make):
    """A model far from its start, where all words and symbols are alike; nothing is compiled."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if leaf.ndim == 0:
            return jnp.zeros((), leaf.dtype)  # how often a key was used
        return jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), leaf.dtype)

    graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    params, rest = jax.tree.map(fill, (params, rest))
    model = nnx.merge(graph, params, jax.tree.map(abs_of_floats, rest))
    model.eval()
    return model


def abs_of_floats(leaf):
    """Batch norm's variances are above 0."""
    return jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@pytest.fixture(scope="module")
def language_model():
    return filled(
        lambda: transformer_xl.TransformerXL(
            30,
            (10, 20),
            features=8,
            layers=2,
            heads=2,
            head_size=4,
            hidden=16,
            memory_length=12,
            rngs=nnx.Rngs(0),
        )
    )


WORDS = jax.random.randint(jax.random.key(1), (2, 13), 0, 30)


@nnx.jit
def nll(model, words, targets, memory):
    return model.nll(words, targets, memory)


def test_segments_with_memory_read_like_one_long_text(language_model):
    x, y = WORDS[:, :-1], WORDS[:, 1:]
    whole, _ = nll(language_model, x, y, language_model.initial_memory(2))
    memory, parts = language_model.initial_memory(2), []
    for i in range(0, 12, 4):
        part, memory = nll(language_model, x[:, i : i + 4], y[:, i : i + 4], memory)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, rtol=2e-5, atol=1e-5)
    assert memory.length == 12
    forgetful, _ = nll(language_model, x[:, 8:], y[:, 8:], language_model.initial_memory(2))
    assert np.abs(forgetful - parts[-1]).max() > 1e-2


def test_no_word_sees_the_words_after_it(language_model):
    x, y = WORDS[:, :-1], WORDS[:, 1:]
    before, _ = nll(language_model, x, y, language_model.initial_memory(2))
    after, _ = nll(language_model, x.at[:, 7:].add(1), y, language_model.initial_memory(2))
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert (after[:, 7:] != before[:, 7:]).all()


def test_the_adaptive_softmax_is_a_distribution_and_its_nll_is_that_of_it(language_model):
    vocabulary = language_model.vocabulary
    hidden = jax.random.normal(jax.random.key(2), (30, 8))
    log_probs = nnx.jit(lambda v: v.log_probs(hidden))(vocabulary)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(axis=1), 1.0, rtol=1e-5)
    every = jnp.arange(30)
    np.testing.assert_allclose(
        nnx.jit(lambda v: v.nll(hidden, every))(vocabulary),
        -log_probs[every, every],
        rtol=1e-5,
        atol=1e-5,
    )


@nnx.jit
def log_probs(model, text):
    """Of the words after each word of one text (k,): (k, 30)."""
    hidden, _ = model(text[None], model.initial_memory(1))
    return model.vocabulary.log_probs(hidden[0])


def test_cold_words_are_the_likeliest_after_all_that_was_read(language_model):
    """The memory carries the prompt and the words drawn: the same as reading all at once."""
    prompt, key = [3, 14, 25], jax.random.key(0)
    drawn = language.sample(language_model, prompt, 6, key, temperature=1e-6, never=[7])
    likeliest = (
        log_probs(language_model, jnp.array(prompt + drawn)).at[:, 7].set(-9).argmax(axis=-1)
    )
    assert drawn == likeliest[2:-1].tolist()
    without = language.sample(language_model, prompt, 6, key, 1e-6, never=[drawn[0]])
    assert drawn[0] not in without


def test_words_are_drawn_by_their_probability(language_model):
    graph, state = nnx.split(language_model)
    keys = jax.random.split(jax.random.key(0), 1000)
    draw = lambda key: language._draw(graph, state, jnp.array([3]), key, 1.0, jnp.array([7]))
    frequencies = np.bincount(jax.vmap(draw)(keys)[:, 0], minlength=30) / 1000
    p = jnp.exp(log_probs(language_model, jnp.array([3]))[0]).at[7].set(0)
    p = p / p.sum()
    # Four standard deviations of a frequency.
    assert (np.abs(frequencies - p) <= 4 * np.sqrt(p * (1 - p) / 1000)).all()


def test_scores_by_distance_become_scores_by_key():
    queries, keys = 3, 5
    by_distance = jnp.arange(queries * keys, dtype=jnp.float32).reshape(queries, keys)
    by_key = transformer_xl.relative_shift(by_distance)
    for i, j in itertools.product(range(queries), range(keys)):
        distance = keys - queries + i - j
        if distance >= 0:
            assert by_key[i, j] == by_distance[i, keys - 1 - distance]


# Tacotron 2

SIZES = tacotron2.Sizes(
    symbols=9,
    encoder_convs=1,
    postnet=4,
    postnet_convs=2,
    filter_size=3,
    decoder=DecoderSizes(
        text=8,
        mels=3,
        prenet=4,
        attention_state=6,
        decoder_state=5,
        attention=4,
        location_filters=2,
        location_filter_size=3,
    ),
)
TEXT, TEXT_LENGTHS = jnp.array([[3, 4, 5, 1, 0, 0], [2, 6, 7, 8, 3, 1]]), jnp.array([4, 6])


@pytest.fixture(scope="module")
def speech_model():
    return filled(lambda: tacotron2.Tacotron2(SIZES, rngs=nnx.Rngs(0)))


def test_padding_reaches_neither_speech_nor_loss(speech_model):
    mels = jax.random.normal(jax.random.key(0), (2, 7, 3))
    lengths = jnp.array([5, 7])
    speech_model.train()  # so that padding could reach the rest through batch norm, too
    graph, state = nnx.split(speech_model)
    speech_model.eval()
    call = jax.jit(lambda state, *arguments: nnx.merge(graph, state, copy=True)(*arguments))
    results = []
    for junk in (0.0, 9.0):
        padded = jnp.where(tacotron2.within(lengths, 7)[..., None], mels, junk)
        text = jnp.where(tacotron2.within(TEXT_LENGTHS, 6), TEXT, int(junk))
        recording = tacotron2.Recording(padded, lengths)
        speech = call(state, text, TEXT_LENGTHS, recording)
        results.append((speech, tacotron2.speech_loss(speech, recording).total))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)
    speech, _ = results[0]
    np.testing.assert_allclose(speech.alignments[0, :5].sum(axis=-1), 1.0, rtol=1e-5)
    assert not speech.alignments[0, :, 4:].any()
    assert not speech.refined[0, 5:].any()


def test_speech_ends_where_its_gate_opens_and_is_silent_after_that(speech_model):
    @jax.jit
    def generate(state, threshold):
        model = nnx.merge(graph, state)
        return model.generate(
            TEXT, TEXT_LENGTHS, jax.random.key(0), max_frames=6, threshold=threshold
        )

    graph, state = nnx.split(speech_model)
    speech, lengths = generate(state, 1.0)
    assert lengths.tolist() == [6, 6]
    done = 1 - np.cumprod(1 - np.asarray(jax.nn.sigmoid(speech.gate)), axis=1)
    text, frame = 0, 3
    for threshold, expected in ((done[text, frame] + 1e-4, 5), (done[text, frame] - 1e-4, 4)):
        ended, lengths = generate(state, threshold)
        assert lengths[text] == expected
    assert not ended.mel[text, frame + 1 :].any()
    np.testing.assert_allclose(ended.mel[text, : frame + 1], speech.mel[text, : frame + 1])
