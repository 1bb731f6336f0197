/*
 * Halfstep's runtime for bare metal: integer kernels in plain C99.
 *
 * No floating point, no allocation, no state; every buffer is the caller's. A generated model
 * (model.c) describes its layers in the structures below and calls the kernels in order.
 *
 * Codes are int8_t. A code c stands for the real number scale * (c - zero_point). Images are
 * stored row by row, the channels of a pixel side by side (height, width, channels), as in
 * CMSIS-NN: all that a window of a convolution reads of one row then lies in one piece.
 *
 * Sums are int32_t and cannot overflow: the generator proves it from the weights, layer by layer,
 * for every possible input.
 */
#ifndef HALFSTEP_H
#define HALFSTEP_H

#include <stdint.h>

/* How many axes of different strides a copy or a broadcast may have. */
#define HS_MAX_AXES 6

/* The two ways to multiply an accumulator by a real number; see halfstep_arithmetic.h. */
typedef enum {
    HS_FLOAT_ROUNDING,  /* the bits of float32 arithmetic, in integers: ONNX Runtime, XNNPACK */
    HS_DOUBLE_ROUNDING  /* gemmlowp's fixed point: the reference kernels of LiteRT */
} hs_rounding;

/* A positive real number: multiplier * 2^shift, or multiplier * 2^(shift - 31) in fixed point. */
typedef struct {
    int32_t multiplier;
    int32_t shift;
} hs_ratio;

/* What happens to a sum on its way to a code: add the zero point, clamp (a fused ReLU is here). */
typedef struct {
    int32_t zero_point;
    int32_t low;
    int32_t high;
} hs_codes;

/* Convolution, linear layer (a 1x1 convolution of rows) and transposed convolution. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t pad_top, pad_left;
    int32_t spread_y, spread_x; /* a transposed convolution reads pixels so far apart; else 1 */
    int32_t groups;
    int32_t in_zero;
    int32_t weight_bits;       /* 8, 4, 2 or 1: how the weights are packed */
    const int8_t *weights;     /* one row an output channel; depthwise: one row a kernel position */
    const int32_t *bias;       /* one an output channel */
    const int32_t *multiplier; /* a ratio for each output channel, in two arrays */
    const int8_t *shift;
    hs_rounding rounding;
    hs_codes out;
} hs_conv;

/* Product of two matrices of codes, for each of many batches. */
typedef struct {
    int32_t batches, rows, inner, columns;
    int32_t a_batch, b_batch; /* codes from one batch to the next; 0 repeats the same */
    int32_t a_zero, b_zero;
    hs_ratio ratio;
    hs_rounding rounding;
    hs_codes out;
} hs_matmul;

/* The order in which an operation visits its operands: sizes and steps, the innermost axis last. */
typedef struct {
    int32_t axes;
    int32_t size[HS_MAX_AXES];
    int32_t a[HS_MAX_AXES];
    int32_t b[HS_MAX_AXES];
    int32_t out[HS_MAX_AXES];
} hs_walk;

/* Addition, or subtraction if b is to be negated; always in gemmlowp's fixed point. */
typedef struct {
    hs_ratio a, b, sum;
    int32_t a_zero, b_zero;
    int32_t b_sign; /* 1 or -1 */
    hs_codes out;
} hs_addition;

typedef struct {
    hs_ratio ratio;
    int32_t a_zero, b_zero;
    hs_rounding rounding;
    hs_codes out;
} hs_product;

/* A mean or a sum along axes: what is visited for one output, and how a sum becomes its steps. */
typedef struct {
    const hs_walk *terms;
    int32_t in_zero;
    hs_ratio ratio;
    hs_rounding rounding;
    hs_codes out;
} hs_reduction;

typedef struct {
    int32_t in_height, in_width, channels;
    int32_t out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t pad_top, pad_left;
} hs_window;

typedef struct {
    hs_window window;
    int32_t top, bottom, left, right; /* the rows and columns that count, padding perhaps included */
    int32_t in_zero;
    int32_t one_ratio;         /* not 0: the first ratio is for every window */
    const int32_t *multiplier; /* a ratio for each number of values in a window, from 1 */
    const int8_t *shift;
    hs_rounding rounding;
    hs_codes out;
} hs_average;

/* Softmax over an axis of `length` codes that lie `inner` codes apart. */
typedef struct {
    int32_t outer, length, inner;
    const uint32_t *powers; /* exp(-difference), for each difference of codes from the largest */
    uint32_t steps;         /* how many steps of the output make 1 */
    hs_codes out;
} hs_softmax_layer;

/* Layer normalization of rows, each position with its own factor and addend. */
typedef struct {
    int32_t rows, length; /* at most 1024 */
    int32_t in_zero;
    uint64_t eps;
    const int16_t *gamma;
    const int32_t *beta;
    hs_ratio ratio;
    hs_rounding rounding;
    hs_codes out;
} hs_norm;

/* `patch` holds one window, kernel_height * kernel_width * in_channels / groups values. */
void hs_conv2d(const hs_conv *layer, const int8_t *in, int8_t *out, int16_t *patch);

/* As many groups as input and output channels; `sums` holds one value a channel. */
void hs_depthwise_conv2d(const hs_conv *layer, const int8_t *in, int8_t *out, int32_t *sums);

/* `column` holds `inner` values. */
void hs_multiply_matrices(const hs_matmul *layer, const int8_t *a, const int8_t *b, int8_t *out,
                          int16_t *column);

void hs_add(const hs_addition *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
            int8_t *out);
void hs_multiply(const hs_product *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                 int8_t *out);
void hs_minimum(const hs_walk *walk, const int8_t *a, const int8_t *b, int8_t *out);

/* The walk visits the outputs, and for each the first of its terms. */
void hs_reduce(const hs_reduction *layer, const hs_walk *walk, const int8_t *in, int8_t *out);

/* table[code - lowest] for each of n codes; `out` may be `in`. */
void hs_lookup(const int8_t *table, int32_t lowest, const int8_t *in, int32_t n, int8_t *out);

void hs_max_pool(const hs_window *window, int32_t lowest, const int8_t *in, int8_t *out);

/* `sums` holds one value a channel. */
void hs_average_pool(const hs_average *layer, const int8_t *in, int8_t *out, int32_t *sums);

void hs_softmax(const hs_softmax_layer *layer, const int8_t *in, int8_t *out);

/* `out` may be `in`. */
void hs_layer_norm(const hs_norm *layer, const int8_t *in, int8_t *out);

/* Moves codes: transposes, slices, repeats, pads and joins are all walks. */
void hs_copy(const hs_walk *walk, const int8_t *in, int8_t *out);

/* Rows of a table, n of them; every index must be that of a row. */
void hs_gather(const int8_t *table, int32_t width, const int32_t *index, int32_t n, int8_t *out);

#endif
