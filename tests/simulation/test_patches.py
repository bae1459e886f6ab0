"""The stand-in for a convolution against torch's own, one client after another."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from simulation import patches
from simulation.patches import PatchConvolution, is_plain


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own-images", "shared-images"])
def test_outputs_and_gradients_equal_torchs_for_each_client(kernel: int, padding: str, is_shared: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    convolution = nn.Conv2d(2, 3, kernel, padding=padding).double()
    stand_in = PatchConvolution(convolution)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    images = drawn(5, 2, 5, 7) if is_shared else drawn(4, 5, 2, 5, 7)  # (clients, batch, channels, height, width)
    lost = kernel - 1 if padding == "valid" else 0
    weight, bias, pull = drawn(4, 3, 2, kernel, kernel), drawn(4, 3), drawn(4, 5, 3, 5 - lost, 7 - lost)
    of_all = [images, weight, bias]
    outputs = vmap(
        lambda weight, bias, images: functional_call(stand_in, {"weight": weight, "bias": bias}, (images,)),
        in_dims=(0, 0, None if is_shared else 0),
    )(weight, bias, images)
    expected = torch.stack(
        [
            nn.functional.conv2d(images if is_shared else images[client], weight[client], bias[client], padding=padding)
            for client in range(4)
        ]
    )
    torch.testing.assert_close(outputs, expected)
    found = torch.autograd.grad((outputs * pull.detach()).sum(), of_all)
    for own, torchs in zip(found, torch.autograd.grad((expected * pull.detach()).sum(), of_all), strict=True):
        torch.testing.assert_close(own, torchs)


@pytest.mark.parametrize(
    ("convolution", "expected"),
    [
        pytest.param(nn.Conv2d(2, 4, 3, padding="same"), True, id="same"),
        pytest.param(nn.Conv2d(2, 4, 3, padding=1), True, id="as-many-zeros"),
        pytest.param(nn.Conv2d(2, 4, 3), True, id="no-padding"),
        pytest.param(nn.Conv2d(2, 4, 3, padding="valid"), True, id="valid"),
        pytest.param(nn.Conv2d(2, 4, 5, padding=1), False, id="too-few-zeros"),
        pytest.param(nn.Conv2d(2, 4, (3, 1), padding="same"), False, id="not-square"),
        pytest.param(nn.Conv2d(2, 4, 3, padding=1, stride=2), False, id="stride"),
        pytest.param(nn.Conv2d(2, 4, 3, padding="same", dilation=2), False, id="dilation"),
        pytest.param(nn.Conv2d(2, 4, 3, padding="same", groups=2), False, id="groups"),
        pytest.param(nn.Conv2d(2, 4, 3, padding="same", bias=False), False, id="no-bias"),
        pytest.param(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), False, id="reflect"),
    ],
)
def test_is_plain_tells_what_it_can_stand_in_for(convolution: nn.Conv2d, expected: bool) -> None:
    assert is_plain(convolution) is expected


def test_what_was_first_used_in_inference_mode_is_used_by_autograd_later() -> None:
    # Of a size that no other test has used before.
    convolution = PatchConvolution(nn.Conv2d(1, 2, 3, padding=1))
    with torch.inference_mode():
        convolution(torch.zeros(1, 1, 17, 19))
    images = torch.randn(1, 1, 17, 19, requires_grad=True)
    convolution(images).sum().backward()
    assert images.grad is not None
    # And as an index that autograd itself keeps.
    taps = patches._taps(19, 21, 3, torch.device("cpu"))
    assert not taps.is_inference()
