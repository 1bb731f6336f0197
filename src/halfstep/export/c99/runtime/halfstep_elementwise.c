/* Operations code by code, and copies, which are walks without arithmetic. */
#include "halfstep.h"
#include "halfstep_arithmetic.h"

/* n codes along the innermost axis, each operand with its own step. */
typedef void (*row_function)(const void *layer, const hs_walk *walk, const int8_t *a,
                             const int8_t *b, int8_t *out);

/* Calls `row` for each position of the outer axes. Offsets, not pointers, wander: they may. */
static void walk_rows(row_function row, const void *layer, const hs_walk *walk, const int8_t *a,
                      const int8_t *b, int8_t *out)
{
    int32_t index[HS_MAX_AXES] = {0};
    int32_t at_a = 0;
    int32_t at_b = 0;
    int32_t at_out = 0;
    for (;;) {
        row(layer, walk, a + at_a, b + at_b, out + at_out);
        int32_t axis = walk->axes - 2;
        for (; axis >= 0; axis--) {
            at_a += walk->a[axis];
            at_b += walk->b[axis];
            at_out += walk->out[axis];
            if (++index[axis] < walk->size[axis]) {
                break;
            }
            at_a -= walk->a[axis] * walk->size[axis];
            at_b -= walk->b[axis] * walk->size[axis];
            at_out -= walk->out[axis] * walk->size[axis];
            index[axis] = 0;
        }
        if (axis < 0) {
            return;
        }
    }
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
