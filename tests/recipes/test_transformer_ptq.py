import torch

import halfstep as hs
from tests.encoders import Encoder, sentences


def test_an_encoder_in_static_int8_is_exact_and_near_its_float_output() -> None:
    model = Encoder().eval()
    data = [sentences(8, seed) for seed in range(3)]
    result = hs.quantize(model, data, recipe="transformer_ptq", searched=2)
    assert result.verdict is not None
    assert result.verdict.status is hs.Status.EXACT
    with torch.no_grad():
        real, quantized = model(*data[0]), result.model(*data[0])
    assert float(torch.cosine_similarity(real, quantized, -1).mean()) > 0.998
    steps = [record.verb for record in result.journal.records]
    assert [s for s in steps if s not in ("capture", "plan", "search ranges")][:6] == [
        "smooth",
        "calibrate",
        "guide ranges",
        "round",
        "guide ranges",
        "correct layer norms",
    ]
