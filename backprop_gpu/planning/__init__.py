"""What runs where, and why: pure functions of a description, testable anywhere."""

import warnings
from typing import Any

from .cpu import (
    SHARDS,
    CpuWork,
    cpu_work,
    epochs_a_call,
    gradient_work,
    members_a_call,
    reading_work,
    shards_of_batch,
    stays_sparse,
    step_flops,
    steps_a_call,
)
from .derivatives import jacobian_mode, rows_at_a_time
from .device import H200, Device
from .fusion import Fusion
from .persistence import Persistence
from .plan import (
    CHUNK_ROWS,
    BatchPlan,
    Choice,
    Plan,
    Run,
    Work,
    choose_backend,
    choose_engine,
    choose_plan,
    dense_rows_at_once,
    least_bytes,
    rows_mixed_at_once,
    step_work,
)
from .products import (
    LONG_SUM,
    TENSOR_TILES,
    TILES,
    Epilogue,
    Product,
    Tile,
    Transposes,
    choose_product,
    column_splits,
    layered_products,
    misfit,
    product_shapes,
    products_of_step,
    rounds,
    tiles,
)
from .residency import Residency

__all__ = [
    "CHUNK_ROWS",
    "H200",
    "LONG_SUM",
    "SHARDS",
    "TENSOR_TILES",
    "TILES",
    "BatchPlan",
    "Choice",
    "CpuWork",
    "Device",
    "Epilogue",
    "Fusion",
    "Persistence",
    "Plan",
    "Product",
    "Residency",
    "Run",
    "Tile",
    "Transposes",
    "Work",
    "choose_backend",
    "choose_engine",
    "choose_plan",
    "choose_product",
    "column_splits",
    "cpu_work",
    "dense_rows_at_once",
    "epochs_a_call",
    "gradient_work",
    "jacobian_mode",
    "layered_products",
    "least_bytes",
    "members_a_call",
    "misfit",
    "product_shapes",
    "products_of_step",
    "reading_work",
    "rounds",
    "rows_at_a_time",
    "rows_mixed_at_once",
    "shards_of_batch",
    "stays_sparse",
    "step_flops",
    "step_work",
    "steps_a_call",
    "tiles",
]

#: Old name -> what it is called now.
_RENAMED = {
    "Layout": Transposes, "Training": Run, "product": choose_product,
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(
            f"planning.{name} is planning.{getattr(new, '__name__', 'Transposes')} now",
            DeprecationWarning,
            stacklevel=2,
        )
        return new
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
