/* C ABI of the crispseg sparse ops on the CPU (op contract version 1, see docs/bundle.md).
 *
 * Conventions
 *  - Every function that returns int returns CS_OK (0) or a negative cs_status; cs_last_error() says why
 *    (thread-local text). Nothing throws across this boundary.
 *  - Rows are active sites in raster order (y, then x). int32 indices; -1 = no neighbour.
 *  - A feature matrix is float32 [n, c] with a row stride ld (in floats, ld >= c). The row *before* row 0, at
 *    x - ld, must be readable and zero over c floats: map entry -1 then addresses it, so that the convolution
 *    has no branch for a missing neighbour ("row 0 = zeros" of the allocation).
 *    Rows a power of two apart share few cache sets: from 256 channels on, ld = c + 16 is 5 to 25 % faster.
 *  - Outputs are written for exactly the rows asked for, and nothing beyond row n or column c.
 *  - After warm-up (same or smaller sizes) no function allocates. Scratch belongs to the context.
 *  - A context is used by one thread at a time; it owns its worker threads. Results do not depend on their number.
 */
#ifndef CRISPSEG_H
#define CRISPSEG_H
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CS_API __declspec(dllexport)
#else
#define CS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define CS_ABI_VERSION 3

typedef enum {
  CS_OK = 0, CS_BAD_ARGUMENT = -1, CS_OUT_OF_MEMORY = -2, CS_UNSUPPORTED = -3, CS_INTERNAL = -4
} cs_status;
typedef enum { CS_NEAREST = 0, CS_BILINEAR = 1, CS_BILINEAR_CORNERS = 2 } cs_upsample;
typedef enum { CS_EXTENT_ACTIVE = 0, CS_EXTENT_IMAGE = 1 } cs_extent;

typedef struct cs_context cs_context;

CS_API int cs_abi_version(void);
CS_API const char *cs_last_error(void);
CS_API const char *cs_build_info(void); /* one line: version, compiler, instruction sets compiled in */

/* threads >= 1. isa: NULL or "" = best of this CPU (or $CRISPSEG_ISA), else "avx512", "avx2" or "generic"; a named
 * one that the CPU or the build lacks is CS_UNSUPPORTED. Returns NULL on failure. */
CS_API cs_context *cs_create(int threads, const char *isa);
CS_API void cs_destroy(cs_context *ctx);
CS_API const char *cs_isa(const cs_context *ctx);
CS_API int cs_threads(const cs_context *ctx);
CS_API size_t cs_scratch_bytes(const cs_context *ctx); /* memory held by the context now */

/* ---- front end -------------------------------------------------------------------------------------------- */
/* logits [C,h,w] -> labels [H,W] (argmax, lowest class wins ties), confidence [H,W] = round(255 * max prob) or NULL,
 * coords [capacity,2] (y,x) of the pixels whose entropy > threshold in raster order, count = rows written,
 * found = pixels above the threshold. found > capacity: the `capacity` most uncertain ones are kept (ties: first in
 * raster order). One pass; full-size logits are never written. E = -sum p*ln(max(p,1e-5)). C <= 256.
 * A NaN logit never wins the argmax; its pixel has confidence 0 and is not active (NaN > threshold is false). */
CS_API int cs_select_pixels(cs_context *ctx, const float *logits, int C, int h, int w, int H, int W, cs_upsample up,
                            float threshold, int64_t capacity, uint8_t *labels, uint8_t *confidence, int32_t *coords,
                            int32_t *count, int32_t *found);
/* x[:, 0:3] = (image[y,x,c] - mean[c]) / std[c] in RGB order, or with bgr != 0 channel c of x is image channel 2-c
 * (statistics stay in the order given: output channel c uses mean[c], std[c]). image uint8 [H,W,3] RGB. */
CS_API int cs_pixel_colours(cs_context *ctx, const uint8_t *image, int H, int W, const int32_t *coords, int32_t n,
                            const float mean[3], const float std[3], int bgr, float *x, int64_t ldx);
/* y[n,C] = logits at the sites, upsampled by the same rule as in cs_select_pixels. */
CS_API int cs_logits_at(cs_context *ctx, const float *logits, int C, int h, int w, int H, int W, cs_upsample up,
                        const int32_t *coords, int32_t n, float *y, int64_t ldy);
CS_API int cs_softmax_rows(cs_context *ctx, const float *x, int64_t ldx, int32_t n, int C, float *y, int64_t ldy);

/* ---- kernel maps (dense index grid in the context's scratch) ------------------------------------------------ */
/* map [n,9]: neighbour (y+ky-1, x+kx-1) for k = ky + 3*kx, or -1. H, W: extent of this level's grid. */
CS_API int cs_submanifold_map(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, int32_t *map);
/* Sites of the next level: o exists iff an active input lies in {2o..2o+2}^2 and 0 <= o <= (M-2)/2 (floor) per axis,
 * M = largest active coordinate (CS_EXTENT_ACTIVE) or size-1 (CS_EXTENT_IMAGE). coords_out needs room for
 * min(4n, ((H-1)/2)*((W-1)/2)) sites. down [m,9]: input row at (2oy+ky, 2ox+kx); up [n,9]: output row o of which this
 * input is tap k, i.e. 2o+k = (y,x); both k = ky + 3*kx, -1 = none. */
CS_API int cs_down_map(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, cs_extent extent,
                       int32_t *coords_out, int32_t *count_out, int32_t *down, int32_t *up);
/* Order in which the convolution visits output rows: rows with the same set of taps next to each other inside blocks,
 * so that a tile skips taps that none of its rows has (the four parity classes of an up-convolution come out of this).
 * order: int32 [n]. */
CS_API int cs_plan_map(cs_context *ctx, const int32_t *map, int32_t n, int K, int32_t *order);

/* ---- convolution -------------------------------------------------------------------------------------------- */
/* Packed weights depend on the context's instruction set. weight: [K,cin,cout] row major. */
CS_API size_t cs_packed_bytes(const cs_context *ctx, int K, int cin, int cout);
CS_API int cs_pack_weight(const cs_context *ctx, const float *weight, int K, int cin, int cout, void *packed);

typedef struct {
  const float *x; int64_t ldx; int32_t n_in; /* [n_in, cin]; row -1 readable and zero */
  const int32_t *map;                        /* [n_out, K], or NULL: identity (K = 1, n_in = n_out) */
  const int32_t *order;                      /* from cs_plan_map, or NULL: raster order */
  int32_t n_out, K, cin, cout;
  const void *weight;                        /* from cs_pack_weight, 64-byte aligned */
  const float *bias;                         /* [cout] or NULL */
  const float *residual; int64_t ldr;        /* [n_out, cout] or NULL; added before relu; may alias y */
  int32_t relu;                              /* y = max(y, 0) */
  float *y; int64_t ldy;                     /* or NULL: only z wanted */
  const float *scale[2], *shift[2];          /* [cout] each */
  float *z[2]; int64_t ldz[2];               /* z = relu(y * scale + shift), or NULL */
  /* A second source, or NULL: output row i adds row i of x2 times weight2, which cs_pack_weight made of
   * [1, cin2, cout], as the last tap of its sum (the 1x1 shortcut of a residual block). Row -1 of x2 readable and zero.
   * Then K < 32. */
  const float *x2; int64_t ldx2; int32_t cin2; /* [n_out, cin2] */
  const void *weight2;
} cs_conv;
CS_API int cs_sparse_conv(cs_context *ctx, const cs_conv *conv);

/* int8: the sum is one of integers, everything after it float32, one rounding an operation: every instruction set gives
 * the same bits. x holds bytes zero + q, q = clamp(round_half_even(v / step), -127, 127): zero = 128, or 0 for v >= 0
 * (q in 0..127), the faster form. Row -1 of x holds `zero` in every byte; strides of bytes are multiples of 4; up to 3
 * bytes after column cin may be read (and count for nothing). K * cin <= 66000, so that no sum overflows. */
typedef struct {
  cs_conv conv;         /* as for cs_sparse_conv without x2, but x, and y or z that have a step, point to bytes, and
                           their strides count bytes; weight from cs_pack_weight_int8 */
  const float *scale;   /* [cout]: step of x times step of the column's weights */
  int32_t zero;         /* of x: 0 or 128 */
  float step[3];        /* of y, z[0], z[1]: 0 = float32 is written, else bytes of this step */
  int32_t out_zero[3];  /* of y, z[0], z[1]: 0 (negative values become 0) or 128 */
} cs_conv_int8;
CS_API size_t cs_packed_bytes_int8(const cs_context *ctx, int K, int cin, int cout);
CS_API int cs_pack_weight_int8(const cs_context *ctx, const int8_t *weight, int K, int cin, int cout, void *packed);
CS_API int cs_sparse_conv_int8(cs_context *ctx, const cs_conv_int8 *conv);
/* q[n, c] = bytes of float32 x[n, c]; the bytes up to the next multiple of 4 columns become `zero` where ldq has
 * room for them. */
CS_API int cs_quantise_rows(cs_context *ctx, const float *x, int64_t ldx, int32_t n, int c, float step, int zero,
                            uint8_t *q, int64_t ldq);
/* Instructions of the int8 kernels: "vnni", "maddubs" or "madd". $CRISPSEG_VNNI=0 keeps a context from VNNI. */
CS_API const char *cs_int8_kernels(const cs_context *ctx);

/* Sparse Winograd on the occupied tiles of a submanifold map's grid: F(2x2,3x3) with tile = 2, F(4x4,3x3) with
 * tile = 4. The same results as cs_sparse_conv up to rounding. A tile takes 16 (36) multiplications per channel pair
 * instead of 9 per site; weights take 16/9 (36/9) of the memory. The error of F(2x2) is below that of direct summation;
 * that of F(4x4) is about three times as large (root mean square) and below 4e-6 of the largest value, whatever the
 * channels. On bands and regions F(2x2) is 1.2 to 1.6 times as fast as cs_sparse_conv from 32 channels on, and F(4x4)
 * 1.1 to 1.4 times as fast as F(2x2); isolated sites are better off with cs_sparse_conv.
 * Plan: of every tile of the grid that has a site, tiles_in [count,S*S], S = tile + 2, the rows at
 * (tile*ty-1+dy, tile*tx-1+dx), number dy + S*dx, and tiles_out [count,tile*tile] the rows at (tile*ty+dy, tile*tx+dx),
 * number dy + tile*dx; -1 = none. Room for min(n, ceil(H/tile)*ceil(W/tile)) tiles. pairs: entries of the submanifold
 * map that are not -1, which is what cs_sparse_conv multiplies. */
CS_API int cs_winograd_plan(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, int tile,
                            int32_t *tiles_in, int32_t *tiles_out, int32_t *count, int64_t *pairs);
CS_API size_t cs_winograd_bytes(const cs_context *ctx, int tile, int cin, int cout);
CS_API int cs_winograd_pack(const cs_context *ctx, const float *weight, int tile, int cin, int cout,
                            void *packed); /* K = 9 */
/* conv: K = 9, n_in = n_out, weight from cs_winograd_pack; no x2; map and order are not read. A row that no tile has
 * is not written. residual may alias y. With tile = 4 a NaN reaches the other rows of its tile. */
CS_API int cs_winograd_conv(cs_context *ctx, const cs_conv *conv, int tile, const int32_t *tiles_in,
                            const int32_t *tiles_out, int32_t tiles);

/* ---- back end ----------------------------------------------------------------------------------------------- */
/* SparseRefine's gated ensembler: v = [softmax(yi), E(yi), softmax(yo), E(yo)]; g = softmax(W2 relu(W1 v + b1) + b2);
 * m = g0*yi + g1*yo; ye = W4 relu(W3 m + b3) + b4. Linear layers as torch stores them: w1 [hidden, 2C+2],
 * w2 [2, hidden], w3 [hidden, C], w4 [C, hidden]. ye may alias yi or yo. */
typedef struct { int C, hidden; const float *w1, *b1, *w2, *b2, *w3, *b3, *w4, *b4; } cs_gate;
CS_API int cs_ensemble_gated(cs_context *ctx, const float *yi, int64_t ldi, const float *yo, int64_t ldo, int32_t n,
                             const cs_gate *gate, float *ye, int64_t lde);
/* ye = yi where E(yi) < E(yo), else yo (ties and NaN: yo). */
CS_API int cs_ensemble_entropy(cs_context *ctx, const float *yi, int64_t ldi, const float *yo, int64_t ldo, int32_t n,
                               int C, float *ye, int64_t lde);
/* labels[y,x] = argmax of row; confidence[y,x] = round(255 * max softmax) when not NULL. In place. */
CS_API int cs_scatter_labels(cs_context *ctx, uint8_t *labels, uint8_t *confidence, int H, int W, const int32_t *coords,
                             int32_t n, const float *logits, int64_t ld, int C);

/* ---- measurement -------------------------------------------------------------------------------------------- */
/* Runs `rounds` rounds of independent multiply-adds in registers on the calling thread, with the context's instruction
 * set; returns the number of floating point operations. Timed by the caller, it gives the arithmetic peak of a core. */
CS_API double cs_fma_loop(cs_context *ctx, int64_t rounds);

#ifdef __cplusplus
}
#endif
#endif
