/*
 * From an exact integer sum to a code: the only arithmetic that rounds.
 *
 * Both ways give the same bits on every core, and those of the simulation that the model was proven
 * with. A right shift of a negative number is taken to be arithmetic, as compilers for these cores
 * have it.
 */
#ifndef HALFSTEP_ARITHMETIC_H
#define HALFSTEP_ARITHMETIC_H

#include "halfstep.h"

/* Larger than any code can get, and small enough to add a zero point to. */
#define HS_SATURATED (INT32_C(1) << 30)

static inline int32_t hs_significant_bits(uint64_t value)
{
#if defined(__GNUC__)
    return value == 0 ? 0 : 64 - __builtin_clzll(value);
#else
    int32_t bits = 0;
    for (; value != 0; value >>= 1) {
        bits++;
    }
    return bits;
#endif
}

/* value / 2^n to the nearest integer, ties to the even one; n from 1 to 63. */
static inline uint64_t hs_shift_half_even(uint64_t value, int32_t n)
{
    const uint64_t quotient = value >> n;
    const uint64_t rest = value & ((UINT64_C(1) << n) - 1);
    const uint64_t half = UINT64_C(1) << (n - 1);
    return quotient + (uint64_t)(rest > half || (rest == half && (quotient & 1) != 0));
}

/* The mantissa of the float32 nearest to value * 2^exponent; the exponent grows as bits go. */
static inline uint64_t hs_float_mantissa(uint64_t value, int32_t *exponent)
{
    const int32_t excess = hs_significant_bits(value) - 24;
    if (excess <= 0) {
        return value;
    }
    *exponent += excess;
    return hs_shift_half_even(value, excess);
}

/*
 * rintf((float)x * ratio) without a float: an int32 becomes a float32, the product is rounded to
 * a float32, and that to the nearest integer, ties to even each time.
 */
static inline int32_t hs_multiply_float(int32_t x, int32_t multiplier, int32_t shift)
{
    int32_t exponent = shift;
    uint64_t size = (uint64_t)(x < 0 ? -(int64_t)x : (int64_t)x);
    size = hs_float_mantissa(size, &exponent);
    size = hs_float_mantissa(size * (uint32_t)multiplier, &exponent);
    if (exponent < -30) {
        size = 0; /* at most 2^24 * 2^-31 */
    } else if (exponent < 0) {
        size = hs_shift_half_even(size, -exponent);
    } else if (size != 0 && exponent > 5) {
        size = (uint64_t)HS_SATURATED;
    } else {
        size <<= exponent;
    }
    return x < 0 ? -(int32_t)size : (int32_t)size;
}

/* The nearest of a * b / 2^31, ties up: ARM's SQRDMULH, gemmlowp's doubling high multiply. */
static inline int32_t hs_multiply_high(int32_t a, int32_t b)
{
    const int64_t product = (int64_t)a * b;
    const int64_t nudge = product >= 0 ? INT64_C(1) << 30 : 1 - (INT64_C(1) << 30);
    const int64_t high = (product + nudge) / (INT64_C(1) << 31);
    return high > INT32_MAX ? INT32_MAX : (int32_t)high;
}

/* The nearest of x / 2^n, ties away from zero; n from 0 to 31. */
static inline int32_t hs_divide_by_power(int32_t x, int32_t n)
{
    const int32_t mask = (int32_t)((UINT32_C(1) << n) - 1);
    const int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> n) + ((x & mask) > threshold);
}

/* x * multiplier * 2^(shift - 31) with gemmlowp's two roundings. */
static inline int32_t hs_multiply_fixed(int32_t x, int32_t multiplier, int32_t shift)
{
    if (shift <= 0) {
        return hs_divide_by_power(hs_multiply_high(x, multiplier), -shift);
    }
    const int64_t shifted = x * (INT64_C(1) << (shift > 31 ? 31 : shift));
    const int64_t low = shifted < INT32_MIN ? INT32_MIN : shifted;
    const int64_t fits = low > INT32_MAX ? INT32_MAX : low;
    return hs_multiply_high((int32_t)fits, multiplier);
}

static inline int32_t hs_rescale(int32_t sum, int32_t multiplier, int32_t shift,
                                 hs_rounding rounding)
{
    return rounding == HS_FLOAT_ROUNDING ? hs_multiply_float(sum, multiplier, shift)
                                         : hs_multiply_fixed(sum, multiplier, shift);
}

/* The code of a number of steps from the zero point. */
static inline int8_t hs_code(int32_t steps, const hs_codes *codes)
{
    const int64_t code = (int64_t)steps + codes->zero_point;
    return (int8_t)(code < codes->low ? codes->low : code > codes->high ? codes->high : code);
}

#endif
