"""
What ran, why, and how far from the limit
=========================================

``explain`` lists the equations of a step with the kernels that carry them out, their work, and the
floor: the time that this machine cannot beat.
"""

from backprop_gpu import Network, planning

net = Network([784, 128, 128, 10], seed=1)
explanation = net.explain(batch_size=128)
print(explanation)

# %%
explanation.plot()

# %%
# The planner is a pure function. Here it plans for a GPU that is not there; all times are
# predicted.
run = planning.Run(rows=60_000, epochs=30, batch_size=128)
there = planning.Choice("cuda", "as an example")
print(planning.choose_plan((784, 128, 128, 10), "float32", there, planning.H200, run))
