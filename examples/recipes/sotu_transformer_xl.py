"""Transformer-XL on the State of the Union addresses: real text that a package holds, 1.6 million
words of it to train on, where WikiText-103 has 103 million. Perplexities of the two do not compare.
"""

from dataclasses import replace

from examples.data.sotu import StateOfTheUnion
from examples.recipes import wikitext_transformer_xl

RECIPE = replace(
    wikitext_transformer_xl.RECIPE,
    name="sotu_transformer_xl",
    title="Transformer-XL on State of the Union addresses, group lasso over inputs",
    load=StateOfTheUnion(),
    model=wikitext_transformer_xl.Model(vocabulary=15_030, cutoffs=(4000, 8000)),
)
