/* Layer normalization: each row centred and divided by its standard deviation. */
#include "halfstep.h"
#include "halfstep_arithmetic.h"

/* The floor of the square root, bit by bit. */
static uint32_t square_root(uint64_t value)
{
    uint64_t root = 0;
    for (uint64_t bit = UINT64_C(1) << 62; bit != 0; bit >>= 2) {
        if (value >= root + bit) {
            value -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return (uint32_t)root;
}

/* 2^18 * centred / root to the nearest integer, ties away from zero. */
static int32_t divided(int32_t centred, uint32_t root)
{
    const uint64_t size = (uint64_t)(centred < 0 ? -centred : centred);
    const int32_t quotient = (int32_t)(((size << 18) + root / 2) / root);
    return centred < 0 ? -quotient : quotient;
}

void hs_layer_norm(const hs_norm *layer, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < layer->rows; row++) {
        int32_t sum = 0;
        for (int32_t i = 0; i < layer->length; i++) {
            sum += in[i] - layer->in_zero;
        }
        uint64_t squares = 0;
        for (int32_t i = 0; i < layer->length; i++) {
            const int64_t centred = (in[i] - layer->in_zero) * layer->length - sum;
            squares += (uint64_t)(centred * centred);
        }
        const uint32_t root =
            square_root((squares << 16) / (uint32_t)layer->length + layer->eps);
        for (int32_t i = 0; i < layer->length; i++) {
            const int32_t centred = (in[i] - layer->in_zero) * layer->length - sum;
            const int32_t value = divided(centred, root == 0 ? 1 : root);
            const int32_t steps =
                hs_rescale(value * layer->gamma[i] + layer->beta[i], layer->ratio.multiplier,
                           layer->ratio.shift, layer->rounding);
            out[i] = hs_code(steps, &layer->out);
        }
        in += layer->length;
        out += layer->length;
    }
}
