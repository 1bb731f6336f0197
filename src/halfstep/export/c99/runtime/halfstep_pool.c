/* Pooling over windows, and softmax: what looks at many codes of one channel. */
#include "halfstep.h"
#include "halfstep_arithmetic.h"

static int8_t *pixel_of(const hs_window *w, int8_t *out, int32_t y, int32_t x)
{
    return out + (y * w->out_width + x) * w->channels;
}

/* The pixel that a kernel position sees, or a null pointer beyond the edge. */
static const int8_t *tap_of(const hs_window *w, const int8_t *in, int32_t row, int32_t column)
{
    if (row < 0 || row >= w->in_height || column < 0 || column >= w->in_width) {
        return (const int8_t *)0;
    }
    return in + (row * w->in_width + column) * w->channels;
}

static void largest(const hs_window *w, const int8_t *in, int32_t y, int32_t x, int8_t *pixel)
{
    for (int32_t ky = 0; ky < w->kernel_height; ky++) {
        for (int32_t kx = 0; kx < w->kernel_width; kx++) {
            const int8_t *tap = tap_of(w, in, y + ky * w->dilation_y, x + kx * w->dilation_x);
            if (tap) {
                for (int32_t i = 0; i < w->channels; i++) {
                    pixel[i] = tap[i] > pixel[i] ? tap[i] : pixel[i];
                }
            }
        }
    }
}

void hs_max_pool(const hs_window *window, int32_t lowest, const int8_t *in, int8_t *out)
{
    for (int32_t y = 0; y < window->out_height; y++) {
        for (int32_t x = 0; x < window->out_width; x++) {
            int8_t *pixel = pixel_of(window, out, y, x);
            for (int32_t i = 0; i < window->channels; i++) {
                pixel[i] = (int8_t)lowest;
            }
            largest(window, in, y * window->stride_y - window->pad_top,
                    x * window->stride_x - window->pad_left, pixel);
        }
    }
}

/* Adds what the window at (y, x) sees, and returns how many values of a channel count. */
static int32_t add_window(const hs_average *layer, const int8_t *in, int32_t y, int32_t x,
                          int32_t *sums)
{
    const hs_window *w = &layer->window;
    int32_t count = 0;
    for (int32_t row = y; row < y + w->kernel_height; row++) {
        for (int32_t column = x; column < x + w->kernel_width; column++) {
            const int8_t *tap = tap_of(w, in, row, column);
            count += row >= layer->top && row < layer->bottom && column >= layer->left &&
                     column < layer->right;
            for (int32_t i = 0; tap && i < w->channels; i++) {
                sums[i] += tap[i] - layer->in_zero;
            }
        }
    }
    return count;
}

void hs_average_pool(const hs_average *layer, const int8_t *in, int8_t *out, int32_t *sums)
{
    const hs_window *w = &layer->window;
    for (int32_t y = 0; y < w->out_height; y++) {
        for (int32_t x = 0; x < w->out_width; x++) {
            int8_t *pixel = pixel_of(w, out, y, x);
            for (int32_t i = 0; i < w->channels; i++) {
                sums[i] = 0;
            }
            const int32_t count = add_window(layer, in, y * w->stride_y - w->pad_top,
                                             x * w->stride_x - w->pad_left, sums);
            const int32_t which = layer->one_ratio ? 0 : count - 1;
            for (int32_t i = 0; i < w->channels; i++) {
                const int32_t steps = hs_rescale(sums[i], layer->multiplier[which],
                                                 layer->shift[which], layer->rounding);
                pixel[i] = hs_code(steps, &layer->out);
            }
        }
    }
}

void hs_softmax(const hs_softmax_layer *layer, const int8_t *in, int8_t *out)
{
    const int32_t span = layer->length * layer->inner;
    for (int32_t row = 0; row < layer->outer * layer->inner; row++) {
        const int32_t start = row / layer->inner * span + row % layer->inner;
        int32_t most = in[start];
        for (int32_t i = start; i < start + span; i += layer->inner) {
            most = in[i] > most ? in[i] : most;
        }
        uint32_t sum = 0;
        for (int32_t i = start; i < start + span; i += layer->inner) {
            sum += layer->powers[most - in[i]];
        }
        for (int32_t i = start; i < start + span; i += layer->inner) {
            const uint32_t share = layer->powers[most - in[i]] * layer->steps;
            out[i] = hs_code((int32_t)((share + sum / 2) / sum), &layer->out);
        }
    }
}
