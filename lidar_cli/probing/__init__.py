"""Classifiers trained with labels on feature files: accuracies to compare a ranking with.

run.py           feature files -> accuracies
data.py          feature files -> training and test rows
linear.py        softmax classifiers, many checkpoints at a time
few_shot.py      accuracies with a few labels a class, over draws
classifiers.py   k-NN, ridge regression, accuracy
"""
