"""The scripts of the book's repository, with our modules in place of its own.

They are not kept here. ``BACKPROP_GPU_BOOK`` names a checkout of
mnielsen/neural-networks-and-deep-learning, ``BACKPROP_GPU_BOOK_PORT`` one of
MichalDanielDobrzanski/DeepLearningPython.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

import nielsen_scripts
from backprop_gpu.nielsen import mnist_loader
from nielsen_scripts import Script, converted, run, run_port, write_data


def checkout(variable):
    name = os.environ.get(variable)
    if not name:
        pytest.skip(f"{variable} names no checkout of the book's repository")
    return Path(name)


def test_the_scripts_of_the_book_run():
    found = list(run(checkout("BACKPROP_GPU_BOOK")))
    assert [str(each) for each in found if each.error] == []


def test_the_ports_trainings_run():
    found = list(run_port(checkout("BACKPROP_GPU_BOOK_PORT")))
    assert len(found) >= 7
    assert {each.error for each in found} == {"", "has convolutions"}


def test_python_2_becomes_3():
    old = """\
    # print "not this"
    import cPickle
    print "Accuracy was %s percent" % accuracy
    print "Saving the gradient for the top six neurons in each "+\\
        "layer.\\nWARNING: be "+\\
        "sure."
    print ("one %s" % 1)
    if j % 2 == 0: print "two"
    for j in xrange(3):
        print "a", {k: v for k, v in d.iteritems()}
    ax = fig.gca(projection='3d')
    ax.w_xaxis.set_major_locator(LinearLocator(3))
    n = int(raw_input("Enter: "))
    return reduce(zip_sum, l)
    """
    new = """\
    # print "not this"
    import pickle
    print("Accuracy was %s percent" % accuracy)
    print("Saving the gradient for the top six neurons in each "+
        "layer.\\nWARNING: be "+
        "sure.")
    print ("one %s" % 1)
    if j % 2 == 0: print("two")
    for j in range(3):
        print("a", {k: v for k, v in d.items()})
    ax = fig.add_subplot(projection='3d')
    ax.xaxis.set_major_locator(LinearLocator(3))
    n = int(input("Enter: "))
    return __import__('functools').reduce(zip_sum, l)
    """
    assert converted(textwrap.dedent(old)).split() == textwrap.dedent(new).split()


def test_scripts_that_run_and_that_do_not(tmp_path):
    (tmp_path / "fig").mkdir()
    path = tmp_path / "fig" / "one.py"
    path.write_text(
        "import sys\nsys.path.append('../src/')\nimport mnist_loader, network2\n"
        "training, _, test = mnist_loader.load_data_wrapper()\n"
        "net = network2.Network([784, 4, 10])\n"
        "net.SGD(training[:50], EPOCHS, 10, 0.5)\n"
        "print net.__class__.__module__\n"
        "assert net.__class__.__module__ == 'backprop_gpu.nielsen.network2'\n"
    )
    cut = ((r"\bEPOCHS\b", "1"),)
    (well,) = run(tmp_path, (Script("fig/one.py", cut=cut),))
    assert (well.error, str(well)) == ("", "| `fig/one.py` | yes |")
    (ill,) = run(tmp_path, (Script("fig/one.py"),))
    assert ill.error == "NameError: name 'EPOCHS' is not defined"
    (missed,) = run(tmp_path, (Script("fig/one.py", cut=((r"\bMORE\b", "1"),)),))
    assert "nothing to cut" in missed.error
    assert path.read_text().count("EPOCHS") == 1  # the checkout is only read


def test_the_data_are_of_the_books_form(tmp_path):
    write_data(tmp_path / "mnist.pkl.gz")
    parts = mnist_loader.load_data(tmp_path)
    assert [X.shape for X, _ in parts] == [(1200, 784), (297, 784), (300, 784)]
    assert nielsen_scripts.MODULES == ("mnist_loader", "network", "network2", "network3")
