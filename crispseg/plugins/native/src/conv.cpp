// cs_sparse_conv: checks, cutting of the work into blocks; weight packing.
#include <cstring>

#include "conv_driver.h"

namespace crispseg {

ConvCut cut_conv(const ConvShape &k, int64_t n_out, int64_t n_in, int steps, int cout, int threads) {
  const int64_t live = (steps < k.max_steps ? steps : k.max_steps) * static_cast<int64_t>(sizeof(float));
  int64_t rows = input_bytes() / live;
  rows = rows > kMaxBlockRows ? kMaxBlockRows : rows;
  // Up-convolutions: fewer rows of input than of output, so that weights serve more of these
  // (1.02 to 1.05 times as fast).
  if (n_in < n_out) rows = 4 * n_in < n_out ? 4 * rows : rows * n_out / n_in;
  ConvCut r;
  r.blocks = ceil_div(n_out, rows);
  if (r.blocks < 8 * threads) r.blocks = round_up(r.blocks, threads);
  r.rows = round_up(ceil_div(n_out, r.blocks), k.mr);
  r.blocks = ceil_div(n_out, r.rows);
  r.panels = static_cast<int>(ceil_div(cout, k.width));
  // Several threads want some units of work each, so that a slow core does not hold up the others; the panels of a
  // block go to different units for that. A unit gathers its rows anew, so it should hold a few panels, except when the
  // threads would go without work.
  const int64_t units = threads == 1 ? 1 : 4 * threads;
  const int64_t few = r.blocks < threads ? 1 : 4;
  const int64_t share = ceil_div(r.panels, ceil_div(units, r.blocks));
  r.panels_per_group = static_cast<int>(share > few ? share : few < r.panels ? few : r.panels);
  r.groups = static_cast<int>(ceil_div(r.panels, r.panels_per_group));
  return r;
}

// Everything about a convolution's arguments but its map.
int check_conv(const char *who, const cs_context *ctx, const cs_conv *c) {
  if (!ctx || !c) return fail(CS_BAD_ARGUMENT, "%s: no context or no arguments", who);
  if (bad_shape(c->K, c->cin, c->cout) || c->n_out < 0 || c->n_in < 0)
    return fail(CS_BAD_ARGUMENT, "%s: n_out = %d, n_in = %d, K = %d (1..%d), cin = %d, cout = %d out of range", who,
                c->n_out, c->n_in, c->K, kMaxTaps, c->cin, c->cout);
  if (!c->weight || reinterpret_cast<uintptr_t>(c->weight) % 64)
    return fail(CS_BAD_ARGUMENT, "%s: packed weights are missing or not aligned to 64 bytes", who);
  if (c->n_in > 0 && (!c->x || c->ldx < c->cin))
    return fail(CS_BAD_ARGUMENT, "%s: x is missing or ldx = %lld is below cin = %d", who,
                static_cast<long long>(c->ldx), c->cin);
  if (c->y && c->ldy < c->cout) return fail(CS_BAD_ARGUMENT, "%s: ldy is below cout = %d", who, c->cout);
  if (c->residual && c->ldr < c->cout) return fail(CS_BAD_ARGUMENT, "%s: ldr is below cout = %d", who, c->cout);
  for (int i = 0; i < 2; ++i)
    if (c->z[i] && (!c->scale[i] || !c->shift[i] || c->ldz[i] < c->cout))
      return fail(CS_BAD_ARGUMENT, "%s: z[%d] needs scale, shift and ldz >= cout = %d", who, i, c->cout);
  if (c->x2 && (bad_shape(c->K + 1, c->cin2, c->cout) || c->ldx2 < c->cin2 || !c->weight2 ||
                reinterpret_cast<uintptr_t>(c->weight2) % 64))
    return fail(CS_BAD_ARGUMENT, "%s: x2: expected K < %d, 1 <= cin2 <= ldx2 and weight2 at a multiple of 64 bytes; "
                "found K = %d, cin2 = %d, ldx2 = %lld", who, kMaxTaps, c->K, c->cin2, static_cast<long long>(c->ldx2));
  if (!c->y && !c->z[0] && !c->z[1]) return fail(CS_BAD_ARGUMENT, "%s: no output asked for", who);
  return CS_OK;
}

int check_map(const char *who, const cs_conv *c) {
  if (c->map || c->n_out == 0 || (c->K == 1 && c->n_in == c->n_out)) return CS_OK;
  return fail(CS_BAD_ARGUMENT, "%s: no map is for K = 1 and n_in = n_out only; found K = %d, n_in = %d, n_out = %d",
              who, c->K, c->n_in, c->n_out);
}

}  // namespace crispseg

extern "C" size_t cs_packed_bytes(const cs_context *ctx, int K, int cin, int cout) {
  using namespace crispseg;
  if (!ctx || bad_shape(K, cin, cout)) return 0;
  return static_cast<size_t>(padded(CS_PICK(ctx->isa, conv_kernels).shape, cout)) * K * cin * sizeof(float);
}

// Packed: [panel][tap][cin][panel width], the last panel padded with zeros to whole vectors.
extern "C" int cs_pack_weight(const cs_context *ctx, const float *weight, int K, int cin, int cout, void *packed) {
  using namespace crispseg;
  if (!ctx || !weight || !packed || bad_shape(K, cin, cout))
    return fail(CS_BAD_ARGUMENT, "cs_pack_weight: missing pointer, or K = %d (1..%d), cin = %d, cout = %d out of range",
                K, kMaxTaps, cin, cout);
  const ConvShape &k = CS_PICK(ctx->isa, conv_kernels).shape;
  float *to = static_cast<float *>(packed);
  for (int col = 0; col < cout; col += k.width) {
    const int cols = cout - col < k.width ? cout - col : k.width, width = padded(k, cols);
    for (int64_t step = 0; step < static_cast<int64_t>(K) * cin; ++step, to += width) {
      std::memcpy(to, weight + step * cout + col, cols * sizeof(float));
      std::memset(to + cols, 0, (width - cols) * sizeof(float));
    }
  }
  return CS_OK;
}

extern "C" int cs_sparse_conv(cs_context *ctx, const cs_conv *conv) {
  using namespace crispseg;
  if (const int bad = check_conv("cs_sparse_conv", ctx, conv)) return bad;
  if (const int bad = check_map("cs_sparse_conv", conv)) return bad;
  const ConvKernels &k = CS_PICK(ctx->isa, conv_kernels);
  return run_blocks(ctx, "cs_sparse_conv", *conv, k.shape, conv->cin, [&](const ConvBlock &block) { k.block(block); });
}
