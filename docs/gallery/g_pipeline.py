"""
In a scikit-learn pipeline
==========================

``MLPClassifier`` is scikit-learn's, trained by this library: the same parameters, attributes and,
from the same ``random_state``, the same numbers.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from backprop_gpu import MLPClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = make_pipeline(StandardScaler(), MLPClassifier((64,), early_stopping=True, random_state=0))
model.fit(X_train, y_train)
print(f"{model.score(X_test, y_test):.1%}")

# %%
# scikit-learn's tools take it as one of theirs.
ConfusionMatrixDisplay.from_estimator(model, X_test, y_test, cmap="Blues")
plt.show()
