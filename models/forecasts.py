"""What is reported of forecasts: their errors on held-out data, and R2.

R2 = 1 - mean((y - f)^2) / mean((y - mean(y))^2), over all numbers to forecast
"""

from collections.abc import Mapping

from torch import Tensor

_SMALLEST_VARIANCE = 1e-12
"""Of targets, in units of their mean square: below, they are one number but for rounding."""


def forecast_measures(outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
    """Return the errors of numbers (batch, outputs), and the moments of the targets, of which `with_r2` makes R2."""
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

    # torchmetrics takes no targets that are columns of a larger tensor.
    outputs, targets = outputs.flatten(), targets.flatten()
    values = targets.double()
    return {
        "mse": mean_squared_error(outputs, targets),
        "mean_absolute_error": mean_absolute_error(outputs, targets),
        "first_moment": values.mean(),
        "second_moment": values.square().mean(),
    }


def with_r2(means: Mapping[str, float]) -> dict[str, float]:
    """Return means of `forecast_measures` over all batches with R2 for the moments; 0 where all targets are the same number."""
    found = {name: mean for name, mean in means.items() if not name.endswith("_moment")}
    variance = means["second_moment"] - means["first_moment"] ** 2
    is_constant = variance <= _SMALLEST_VARIANCE * means["second_moment"]
    return found | {"r2": 0.0 if is_constant else 1 - means["mse"] / variance}
