"""How much embeddings are worth: simple classifiers on them and on raw features, on the same pixels and folds.

python -m preproc.classify.probe RUN [--embeddings NAME=DIR ...]
"""
