/* Sums of products: convolutions, linear layers and products of two matrices. */
#include "halfstep.h"
#include "halfstep_arithmetic.h"

static int32_t packed_bytes(int32_t n, int32_t bits)
{
    return (n * bits + 7) / 8;
}

/* Code number i of a row of packed ones, the first in the lowest bits; two's complement. */
static int32_t unpacked(const int8_t *row, int32_t i, int32_t bits)
{
    const int32_t position = i * bits;
    const int32_t field = ((uint8_t)row[position >> 3] >> (position & 7)) & ((1 << bits) - 1);
    const int32_t sign = 1 << (bits - 1);
    return (field ^ sign) - sign;
}

static int32_t dot(const int16_t *x, const int8_t *row, int32_t n, int32_t bits)
{
    int32_t sum = 0;
    if (bits == 8) {
        for (int32_t i = 0; i < n; i++) {
            sum += x[i] * row[i];
        }
    } else {
        for (int32_t i = 0; i < n; i++) {
            sum += x[i] * unpacked(row, i, bits);
        }
    }
    return sum;
}

/* The row (or column) of the input at `position`, or -1 where there is padding or a gap. */
static int32_t input_at(int32_t position, int32_t spread, int32_t size)
{
    if (position < 0 || position % spread != 0 || position / spread >= size) {
        return -1;
    }
    return position / spread;
}

/* What one group of channels sees from output pixel (y, x), as steps from the zero point. */
static void gather_patch(const hs_conv *c, const int8_t *in, int32_t y, int32_t x, int32_t group,
                         int16_t *patch)
{
    const int32_t channels = c->in_channels / c->groups;
    for (int32_t ky = 0; ky < c->kernel_height; ky++) {
        const int32_t row =
            input_at(y * c->stride_y - c->pad_top + ky * c->dilation_y, c->spread_y, c->in_height);
        for (int32_t kx = 0; kx < c->kernel_width; kx++) {
            const int32_t column = input_at(x * c->stride_x - c->pad_left + kx * c->dilation_x,
                                            c->spread_x, c->in_width);
            if (row < 0 || column < 0) {
                for (int32_t i = 0; i < channels; i++) {
                    patch[i] = 0;
                }
            } else {
                const int8_t *pixel =
                    in + (row * c->in_width + column) * c->in_channels + group * channels;
                for (int32_t i = 0; i < channels; i++) {
                    patch[i] = (int16_t)(pixel[i] - c->in_zero);
                }
            }
            patch += channels;
        }
    }
}

/* The outputs of one group at one pixel. */
static int8_t *multiply_patch(const hs_conv *c, const int16_t *patch, int32_t taps, int32_t group,
                              int8_t *out)
{
    const int32_t outputs = c->out_channels / c->groups;
    const int32_t row_bytes = packed_bytes(taps, c->weight_bits);
    for (int32_t i = group * outputs; i < (group + 1) * outputs; i++) {
        const int32_t sum = c->bias[i] + dot(patch, c->weights + i * row_bytes, taps, c->weight_bits);
        const int32_t steps = hs_rescale(sum, c->multiplier[i], c->shift[i], c->rounding);
        *out++ = hs_code(steps, &c->out);
    }
    return out;
}

void hs_conv2d(const hs_conv *layer, const int8_t *in, int8_t *out, int16_t *patch)
{
    const int32_t taps =
        layer->kernel_height * layer->kernel_width * (layer->in_channels / layer->groups);
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            for (int32_t group = 0; group < layer->groups; group++) {
                gather_patch(layer, in, y, x, group, patch);
                out = multiply_patch(layer, patch, taps, group, out);
            }
        }
    }
}

/* Adds one kernel position of every channel. */
static void add_tap(const hs_conv *c, const int8_t *pixel, const int8_t *row, int32_t *sums)
{
    if (c->weight_bits == 8) {
        for (int32_t i = 0; i < c->in_channels; i++) {
            sums[i] += (pixel[i] - c->in_zero) * row[i];
        }
    } else {
        for (int32_t i = 0; i < c->in_channels; i++) {
            sums[i] += (pixel[i] - c->in_zero) * unpacked(row, i, c->weight_bits);
        }
    }
}

void hs_depthwise_conv2d(const hs_conv *layer, const int8_t *in, int8_t *out, int32_t *sums)
{
    const int32_t channels = layer->in_channels;
    const int32_t row_bytes = packed_bytes(channels, layer->weight_bits);
    for (int32_t y = 0; y < layer->out_height; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            const int8_t *row = layer->weights;
            for (int32_t i = 0; i < channels; i++) {
                sums[i] = layer->bias[i];
            }
            for (int32_t ky = 0; ky < layer->kernel_height; ky++) {
                const int32_t in_y = y * layer->stride_y - layer->pad_top + ky * layer->dilation_y;
                for (int32_t kx = 0; kx < layer->kernel_width; kx++, row += row_bytes) {
                    const int32_t in_x =
                        x * layer->stride_x - layer->pad_left + kx * layer->dilation_x;
                    if (in_y >= 0 && in_y < layer->in_height && in_x >= 0 &&
                        in_x < layer->in_width) {
                        add_tap(layer, in + (in_y * layer->in_width + in_x) * channels, row, sums);
                    }
                }
            }
            for (int32_t i = 0; i < channels; i++) {
                const int32_t steps = hs_rescale(sums[i], layer->multiplier[i], layer->shift[i],
                                                 layer->rounding);
                *out++ = hs_code(steps, &layer->out);
            }
        }
    }
}

void hs_multiply_matrices(const hs_matmul *layer, const int8_t *a, const int8_t *b, int8_t *out,
                          int16_t *column)
{
    for (int32_t batch = 0; batch < layer->batches; batch++) {
        const int8_t *first = a + batch * layer->a_batch;
        const int8_t *second = b + batch * layer->b_batch;
        for (int32_t j = 0; j < layer->columns; j++) {
            for (int32_t k = 0; k < layer->inner; k++) {
                column[k] = (int16_t)(second[k * layer->columns + j] - layer->b_zero);
            }
            for (int32_t i = 0; i < layer->rows; i++) {
                const int8_t *row = first + i * layer->inner;
                int32_t sum = 0;
                for (int32_t k = 0; k < layer->inner; k++) {
                    sum += column[k] * (row[k] - layer->a_zero);
                }
                const int32_t steps = hs_rescale(sum, layer->ratio.multiplier, layer->ratio.shift,
                                                 layer->rounding);
                out[i * layer->columns + j] = hs_code(steps, &layer->out);
            }
        }
        out += layer->rows * layer->columns;
    }
}
