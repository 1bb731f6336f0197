/* Operations code by code, means and sums along axes, and copies: all of them are walks. */
#include "halfstep.h"
#include "halfstep_arithmetic.h"

/* n codes along the innermost axis, each operand with its own step. */
typedef void (*row_function)(const void *layer, const hs_walk *walk, const int8_t *a,
                             const int8_t *b, int8_t *out);

/* A position of a walk's outer axes. Offsets, not pointers, wander: they may. */
typedef struct {
    int32_t index[HS_MAX_AXES];
    int32_t a, b, out;
} position;

static const position beginning;

/* The next position of all axes but the innermost; 0 behind the last one. */
static int advance(position *at, const hs_walk *walk)
{
    for (int32_t axis = walk->axes - 2; axis >= 0; axis--) {
        at->a += walk->a[axis];
        at->b += walk->b[axis];
        at->out += walk->out[axis];
        if (++at->index[axis] < walk->size[axis]) {
            return 1;
        }
        at->a -= walk->a[axis] * walk->size[axis];
        at->b -= walk->b[axis] * walk->size[axis];
        at->out -= walk->out[axis] * walk->size[axis];
        at->index[axis] = 0;
    }
    return 0;
}

static void walk_rows(row_function row, const void *layer, const hs_walk *walk, const int8_t *a,
                      const int8_t *b, int8_t *out)
{
    position at = beginning;
    do {
        row(layer, walk, a + at.a, b + at.b, out + at.out);
    } while (advance(&at, walk));
}

static void add_row(const void *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                    int8_t *out)
{
    const hs_addition *p = layer;
    const int32_t last = walk->axes - 1;
    for (int32_t i = 0; i < walk->size[last]; i++) {
        const int32_t first = (a[i * walk->a[last]] - p->a_zero) * (1 << 20);
        const int32_t second = (b[i * walk->b[last]] - p->b_zero) * (1 << 20);
        const int32_t sum = hs_multiply_fixed(first, p->a.multiplier, p->a.shift) +
                            p->b_sign * hs_multiply_fixed(second, p->b.multiplier, p->b.shift);
        const int32_t steps = hs_multiply_fixed(sum, p->sum.multiplier, p->sum.shift);
        out[i * walk->out[last]] = hs_code(steps, &p->out);
    }
}

static void multiply_row(const void *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                         int8_t *out)
{
    const hs_product *p = layer;
    const int32_t last = walk->axes - 1;
    for (int32_t i = 0; i < walk->size[last]; i++) {
        const int32_t product = (a[i * walk->a[last]] - p->a_zero) *
                                (b[i * walk->b[last]] - p->b_zero);
        const int32_t steps =
            hs_rescale(product, p->ratio.multiplier, p->ratio.shift, p->rounding);
        out[i * walk->out[last]] = hs_code(steps, &p->out);
    }
}

static void minimum_row(const void *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                        int8_t *out)
{
    const int32_t last = walk->axes - 1;
    (void)layer;
    for (int32_t i = 0; i < walk->size[last]; i++) {
        const int8_t first = a[i * walk->a[last]];
        const int8_t second = b[i * walk->b[last]];
        out[i * walk->out[last]] = first < second ? first : second;
    }
}

/* The sum of steps from the zero point, of all that a walk visits. */
static int32_t sum_of(const hs_walk *terms, const int8_t *in, int32_t zero)
{
    const int32_t last = terms->axes - 1;
    position at = beginning;
    int32_t sum = 0;
    do {
        for (int32_t i = 0; i < terms->size[last]; i++) {
            sum += in[at.a + i * terms->a[last]] - zero;
        }
    } while (advance(&at, terms));
    return sum;
}

static void reduce_row(const void *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                       int8_t *out)
{
    const hs_reduction *p = layer;
    const int32_t last = walk->axes - 1;
    (void)b;
    for (int32_t i = 0; i < walk->size[last]; i++) {
        const int32_t sum = sum_of(p->terms, a + i * walk->a[last], p->in_zero);
        const int32_t steps = hs_rescale(sum, p->ratio.multiplier, p->ratio.shift, p->rounding);
        out[i * walk->out[last]] = hs_code(steps, &p->out);
    }
}

static void copy_row(const void *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                     int8_t *out)
{
    const int32_t last = walk->axes - 1;
    (void)layer;
    (void)b;
    for (int32_t i = 0; i < walk->size[last]; i++) {
        out[i * walk->out[last]] = a[i * walk->a[last]];
    }
}

void hs_add(const hs_addition *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
            int8_t *out)
{
    walk_rows(add_row, layer, walk, a, b, out);
}

void hs_multiply(const hs_product *layer, const hs_walk *walk, const int8_t *a, const int8_t *b,
                 int8_t *out)
{
    walk_rows(multiply_row, layer, walk, a, b, out);
}

void hs_minimum(const hs_walk *walk, const int8_t *a, const int8_t *b, int8_t *out)
{
    walk_rows(minimum_row, (const void *)0, walk, a, b, out);
}

void hs_reduce(const hs_reduction *layer, const hs_walk *walk, const int8_t *in, int8_t *out)
{
    walk_rows(reduce_row, layer, walk, in, in, out);
}

void hs_copy(const hs_walk *walk, const int8_t *in, int8_t *out)
{
    walk_rows(copy_row, (const void *)0, walk, in, in, out);
}

void hs_lookup(const int8_t *table, int32_t lowest, const int8_t *in, int32_t n, int8_t *out)
{
    for (int32_t i = 0; i < n; i++) {
        out[i] = table[in[i] - lowest];
    }
}

void hs_gather(const int8_t *table, int32_t width, const int32_t *index, int32_t n, int8_t *out)
{
    for (int32_t row = 0; row < n; row++) {
        for (int32_t i = 0; i < width; i++) {
            *out++ = table[index[row] * width + i];
        }
    }
}
